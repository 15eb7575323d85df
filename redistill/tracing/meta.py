"""What stands in ``meta``: every key that this library writes at a node or at a graph, and who reads it.

Policy is written there, mechanism carries it out: the compiler annotates, a pass executes and takes the order away.
"""

from __future__ import annotations

import enum


class Meta(str, enum.Enum):
    """Keys of ``node.meta`` and, the last two, of ``graph_module.meta``."""

    SHAPE = "shape"
    """The shape of the node's value at the example input."""
    DTYPE = "dtype"
    """The type of the node's value."""
    GUARD = "guard"
    """A value that the teacher's control flow read: the graph is right only while it stays so."""
    GUARD_ONLY = "guard_only"
    """The node is there for a guard alone."""
    INLINED = "inlined"
    """At the output node: what was traced through that could have been kept, for the notes."""
    REDUCES_INPUT = "reduces_input"
    """The node is the pool by which an image is reduced before the first convolution."""
    RETURNS = "returns"
    """The node is where a map leaves that the network reads on itself."""
    RESTRIDE = "restride"
    """An order: the node's new stride and grid."""
    TAPS = "taps"
    """Orders: the RED blocks to be laid behind the node."""
    TAP = "tap"
    """The name of the tap that stands at the node."""
    PATCH = "patch"
    """An order: the region that the node is to be run in, piece by piece."""
    DEPLOYED = "deployed"
    """The graph that inference runs, where it is another than the graph that trains."""
    RECORD = "student"
    """What a student knows of itself."""
