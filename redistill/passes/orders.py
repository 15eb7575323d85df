"""Orders: what a plan asks of an operation, written into ``node.meta["restride"]`` and carried out by a pass."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from redistill.tracing.windows import Sides


@dataclass(frozen=True)
class Restride:
    """What a plan asks of an operation: for each of ``axes`` its stride (input side over output side) and output side.

    A convolution asked for a stride below 1 keeps to its input's grid and its output is enlarged: the tail of a
    denoiser or segmenter, which must return to the teacher's grid. It gets as many times its channels, which a pixel
    shuffle lays out in space, and unlike plain upsampling it is able to fill in detail. At first the copies of a
    channel are equal, which is nearest upsampling. Maps of features (a pyramid's, no fewer channels than what they are
    made of) stay so: as many times the weights would be the network's largest, and its peak. A transposed convolution
    does the same by a longer kernel.
    """

    strides: tuple[Fraction, ...]
    target: Sides
    axes: Sides = (-2, -1)


@dataclass(frozen=True)
class Resize:
    """What a plan asks of an operation that is told sizes: each of them over its ratio.

    ``sizes`` names the nodes, each with its own ratio and the size it must become (None: as it is rounded up); by
    default all that are read beside the first input, over ``ratio``, or a size that is a constant.
    """

    ratio: Fraction = Fraction(1)
    sizes: tuple[tuple[str, Fraction, int | None], ...] = ()


@dataclass(frozen=True)
class Narrow:
    """What a plan asks of an unpadded window, or of a crop: to lose fewer cells of a coarser grid, for each shows more.

    The sides wanted of ``axes``, and by how many cells they are shorter than those read, which may fall short of the
    plan. Where no padding makes the very side, the next longer one is cropped, or without ``crops`` the next shorter
    one is taken.
    """

    target: Sides
    loses: Sides
    axes: Sides
    crops: bool = False


Order = Restride | Resize | Narrow
