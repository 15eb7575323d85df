"""Trainers: distil a teacher into its student."""
