"""Rules shared by all methods: which maps are paired, how sizes and widths are matched.

Stages are paired by name, never by position. Of two maps of different size the larger is average-pooled to the
smaller's height and width. Widths are matched by a 1x1 convolution on the student's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from redistill.errors import TapError
from redistill.internal.suggestions import suggest

Pair = tuple[str, Tensor, Tensor]


def pair(
    method: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], only: Sequence[str] = ()
) -> list[Pair]:
    """Pair the maps of both networks by name, shallow to deep; `only` selects some of them."""
    common = [name for name in student if name in teacher]
    if not common:
        raise TapError(
            f"{method}: student and teacher share no stage; the student has {_listed(student)} "
            f"and the teacher {_listed(teacher)}"
        )
    for name in only:
        if name not in common:
            raise TapError(f"{method}: there is no place {name!r} in both networks{suggest(name, common)}")
    return [(name, student[name], teacher[name]) for name in (only or common)]


def match_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool whichever map is larger, per side, to the smaller's grid: [B, C, H, W] twice, equal H and W."""
    height, width = (min(a, b) for a, b in zip(first.shape[-2:], second.shape[-2:], strict=True))
    return pool_to(first, height, width), pool_to(second, height, width)


def pool_to(value: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling, skipped where the grid is already right."""
    return value if value.shape[-2:] == (height, width) else F.adaptive_avg_pool2d(value, (height, width))


def match_width(student: Tensor, teacher: Tensor, *, norm: bool = False, bias: bool = True) -> nn.Module:
    """A 1x1 convolution from the student's channels to the teacher's, with a batch norm if `norm`."""
    convolution = nn.Conv2d(student.shape[1], teacher.shape[1], kernel_size=1, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher.shape[1])) if norm else convolution


def require_equal_grids(method: str, name: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse a pair of maps whose heights or widths differ."""
    if student.shape[-2:] != teacher.shape[-2:]:
        raise TapError(
            f"{method}: at {name} the student's map is {describe(student)} and the teacher's {describe(teacher)}; "
            "a tap needs equal grids, so choose places of equal height and width"
        )


def require_equal_widths(method: str, name: str, student: Tensor, teacher: Tensor, remedy: str) -> None:
    """Refuse a pair of maps whose channel counts differ."""
    if student.shape[1] != teacher.shape[1]:
        raise TapError(
            f"{method}: at {name} the student has {student.shape[1]} channels "
            f"and the teacher {teacher.shape[1]}; {remedy}"
        )


def describe(value: Tensor) -> str:
    """A map's shape without the batch, as C x H x W."""
    return "x".join(str(size) for size in value.shape[1:])


def _listed(names: Mapping[str, Tensor] | Sequence[str]) -> str:
    return ", ".join(names) or "none"


def key(name: str) -> str:
    """A stage's name as a key that torch accepts for submodules and parameters, which may hold no dots."""
    return name.replace(".", "/")
