"""Patches: run the part of a network that needs most memory piece by piece, with the same outputs, planned exactly."""
