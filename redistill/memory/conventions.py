"""Conventions of peak activation memory, as values: what is counted, and what may share memory.

There is no agreed definition of peak memory, so no figure goes without its convention. A convention is a value like any
other: make one of your own and give it wherever one is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from redistill.errors import ModelError
from redistill.internal.plugins import find


@dataclass(frozen=True)
class Convention:
    """How activation memory is counted.

    Attributes:
        name: one word, printed beside every figure.
        about: what is counted, in a line.
        as_written: operations write where the graph says, in place or not, and nothing is folded; otherwise in-place
            writes are undone first, so that the next three decide.
        overwrites: activations and sums take over the buffer of an input that dies with them.
        folds_batch_norm: a batch norm after a convolution is part of it.
        pins_input: the graph's inputs are held for the whole run, not for as long as they are read.
        counts_transients: memory born and dead within one operation counts.
        of_module: counted while the module itself runs, with what its own Python frames keep alive. A graph has no such
            frames: of graphs the same is counted by ``graph``.

    Raises:
        ModelError: flags that contradict each other.

    Example:
        >>> pinned = Convention("pinned", "as deploy, but the caller keeps the input", overwrites=True, pins_input=True)
        >>> str(pinned)
        'pinned'
    """

    name: str
    about: str
    as_written: bool = False
    overwrites: bool = False
    folds_batch_norm: bool = True
    pins_input: bool = False
    counts_transients: bool = False
    of_module: bool = False

    def __post_init__(self) -> None:
        if self.as_written and (self.overwrites or self.folds_batch_norm):
            raise ModelError(f"convention {self.name}: what is counted as written overwrites and folds nothing")

    def __str__(self) -> str:
        return self.name

    @property
    def of_graph(self) -> Convention:
        """The convention by which a graph is counted where a module would be counted by this one."""
        return GRAPH if self.of_module else self


DEPLOY = Convention(
    "deploy",
    "batch norm folded, activations and sums overwrite a dying input, the graph input counted while in use",
    overwrites=True,
)
ARENA = Convention("arena", "batch norm folded, nothing in place, the graph input counted while in use")
GRAPH = Convention(
    "graph",
    "the traced graph as written, the graph input held throughout, memory within operations counted",
    as_written=True, folds_batch_norm=False, pins_input=True, counts_transients=True,
)  # fmt: skip
EAGER = Convention(
    "eager",
    "the module as it runs, the graph input held throughout, memory within operations counted",
    as_written=True, folds_batch_norm=False, pins_input=True, counts_transients=True, of_module=True,
)  # fmt: skip

CONVENTIONS = {convention.name: convention for convention in (DEPLOY, ARENA, GRAPH, EAGER)}
"""The conventions that have a name of their own."""


def find_convention(convention: str | Convention) -> Convention:
    """Return the convention of that name, or what ``package.module:Name`` names; a :class:`Convention` is its own.

    Raises:
        ModelError: no such name; the message lists those there are.

    Example:
        >>> find_convention("arena").overwrites
        False
    """
    found = find(convention, CONVENTIONS, "convention", ModelError) if isinstance(convention, str) else convention
    if not isinstance(found, Convention):
        raise ModelError(f"{convention!r} is a {type(found).__name__}; give a word or a redistill.Convention")
    return found
