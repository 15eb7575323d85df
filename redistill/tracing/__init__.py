"""Tracing: any teacher and an example input in, a checked graph out."""
