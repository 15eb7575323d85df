"""What went wrong, in a few words: other libraries' errors as parts of our own, which are one line."""

from __future__ import annotations


def reason(error: BaseException, longest: int = 160) -> str:
    """What an error says, on one line of at most ``longest`` characters; its class where it says nothing.

    >>> reason(ValueError("two  words\\nand more")), reason(KeyError())
    ('two words and more', 'KeyError')
    """
    words = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return str(words)[:longest]


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing.

    >>> first_line(RuntimeError("shapes differ\\nat great length"))
    'shapes differ'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
