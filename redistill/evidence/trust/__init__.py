"""Trust: what is tried against the library's promises, and what of it went wrong."""

from redistill.evidence.trust.command import main

__all__ = ["main"]
