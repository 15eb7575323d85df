"""What a misspelt word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5
LONGEST = 80
"""Characters that are compared: the time grows with their square."""
SHOWN = 400
"""Characters of a list of all known words."""


def suggest(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or as many of them as are read in a glance."""
    names = list(known)
    nearest = difflib.get_close_matches(str(word)[:LONGEST], names, n=1, cutoff=CUTOFF)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    shown = names
    while len(", ".join(shown)) > SHOWN:
        shown = shown[:-1]
    more = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"; choose from {', '.join(shown) or 'none'}{more}"
