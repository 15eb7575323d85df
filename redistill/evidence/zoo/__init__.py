"""The zoo: networks of public libraries, each transformed and checked in a process of its own."""

from redistill.evidence.zoo.command import main

__all__ = ["main"]
