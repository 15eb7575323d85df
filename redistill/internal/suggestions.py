"""What a misspelt word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.5


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known word, or all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(word, names, n=1, cutoff=CUTOFF)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; choose from {', '.join(names) or 'none'}"
