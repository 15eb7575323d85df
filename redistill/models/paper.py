"""The six pairs of the ReDistill paper (Chen et al., TMLR 2025, arXiv 2406.03744) as data.

Peaks are of one fp32 image, in MiB, under the ``deploy`` convention. The paper's own count differs for two pairs: it
over-counts ResNet50 by a third, and misses two skips of the DDPM UNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from redistill.models import strided


@dataclass(frozen=True)
class PaperPair:
    """A teacher and its student.

    Attributes:
        name: the pair's short name.
        spec: the teacher, for ``load_model``.
        input_shape: (C, H, W) of one input.
        factors: the pooling factor of each stage (the teacher's grid over the student's), the finest first.
        paper_teacher_mib: peak that the paper counts for the teacher.
        paper_student_mib: peak that the paper counts for the student.
        exact_teacher_mib: the teacher's peak by exact liveness.
        exact_student_mib: the student's peak by exact liveness.
        student_spec: the student with its strides written by hand, as the paper does; None where no builder has it.
    """

    name: str
    spec: str
    input_shape: tuple[int, int, int]
    factors: tuple[int, ...]
    paper_teacher_mib: float
    paper_student_mib: float
    exact_teacher_mib: float
    exact_student_mib: float
    student_spec: str | None = None


def _strided(name: str, strides: Sequence[int]) -> str:
    return f"redistill:{name}?strides={list(strides)}".replace(" ", "")


_RESNET_STUDENT_STRIDES = (8, 1, 1, 2, 2, 1)

PAPER_PAIRS = MappingProxyType(
    {
        pair.name: pair
        for pair in (
            PaperPair(
                name="mobilenetv2",
                spec=_strided("mobilenet_v2_strided", strided.MOBILENET_V2_STRIDES),
                input_shape=(3, 128, 128),
                factors=(4, 4, 4, 2, 1),
                paper_teacher_mib=7.5,
                paper_student_mib=0.508,
                exact_teacher_mib=7.5,
                exact_student_mib=0.508,
                student_spec=_strided("mobilenet_v2_strided", (4, 1, 2, 2, 1, 1, 1, 1)),
            ),
            PaperPair(
                name="mobilenetv3_small",
                spec=_strided("mobilenet_v3_small_strided", strided.MOBILENET_V3_SMALL_STRIDES),
                input_shape=(3, 128, 128),
                factors=(4, 4, 4, 2, 1),
                paper_teacher_mib=1.406,
                paper_student_mib=0.307,
                exact_teacher_mib=1.406,
                exact_student_mib=0.307,
                student_spec=_strided("mobilenet_v3_small_strided", (4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
            ),
            PaperPair(
                name="resnext18",
                spec=_strided("resnext18", strided.RESNEXT18_STRIDES),
                input_shape=(3, 128, 128),
                factors=(4, 2, 2, 2, 1),
                paper_teacher_mib=5.0,
                paper_student_mib=0.75,
                exact_teacher_mib=5.0,
                exact_student_mib=0.75,
                student_spec=_strided("resnext18", (4, 1, 1, 2, 2, 1)),
            ),
            PaperPair(
                name="resnet18",
                spec="torchvision:resnet18",
                input_shape=(3, 224, 224),
                factors=(4, 2, 2, 2, 1),
                paper_teacher_mib=3.828,
                paper_student_mib=0.766,
                exact_teacher_mib=3.828,
                exact_student_mib=0.766,
                student_spec=_strided("resnet18_strided", _RESNET_STUDENT_STRIDES),
            ),
            PaperPair(
                name="resnet50",
                spec="torchvision:resnet50",
                input_shape=(3, 224, 224),
                factors=(4, 2, 2, 2, 1),
                paper_teacher_mib=9.188,
                paper_student_mib=2.297,
                exact_teacher_mib=6.891,
                exact_student_mib=1.723,
                student_spec=_strided("resnet50_strided", _RESNET_STUDENT_STRIDES),
            ),
            PaperPair(
                name="ddpm_unet",
                spec="redistill:ddpm_unet",
                input_shape=(3, 32, 32),
                factors=(2, 2, 2, 1),
                paper_teacher_mib=3.5,
                paper_student_mib=0.875,
                exact_teacher_mib=4.502,
                exact_student_mib=1.127,
            ),
        )
    }
)
"""The pairs by name."""
