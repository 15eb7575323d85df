"""What a misspelt word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5
LONGEST = 80
"""Characters that are compared: the time grows with their square."""


def suggest(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(str(word)[:LONGEST], names, n=1, cutoff=CUTOFF)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; choose from {', '.join(names) or 'none'}"
