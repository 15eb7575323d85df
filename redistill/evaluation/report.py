"""An evaluation as a table, as JSON, and its images as a grid."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torchvision.utils import make_grid

from redistill.evaluation.evaluating import Evaluation, Judged
from redistill.evaluation.fidelity import Fidelity
from redistill.evaluation.pictures import TILES
from redistill.report.files import write_atomically
from redistill.trainers.record import table

HEADS = ("FID", "KID x1000", "IS", "precision", "recall", "SSIM", "MSE x1000")
FLOOR = "real"


def render(evaluation: Evaluation) -> str:
    """The table, and below it all that the scores depend on."""
    rows: list[tuple[str, ...]] = [("", *HEADS)]
    rows += [(name, *cells(judged.fidelity, judged)) for name, judged in evaluation.judged.items()]
    rows.append((FLOOR, *cells(evaluation.floor)))
    sources = [f"{name}: {_source(judged)}" for name, judged in evaluation.judged.items()]
    notes = [
        *sources,
        *describe_reference(to_json(evaluation)),
    ]
    return "\n".join([table(rows), "", *notes])


def describe_reference(data: Mapping[str, Any]) -> list[str]:
    """What an evaluation's scores were computed with, from its JSON."""
    return [
        f"{FLOOR}: the floor, {data['floor_description']}",
        f"reference: {data['reference']}",
        f"extractor: {data['extractor']}, sha256 {data['extractor_digest'][:8]}",
    ]


def cells(fidelity: Fidelity, judged: Judged | None = None) -> tuple[str, ...]:
    """The scores in the order of ``HEADS``."""
    f = fidelity
    kid = f"{1000 * f.kid:.2f} ± {1000 * f.kid_spread:.2f}"
    near = (None, None) if judged is None else (judged.ssim, judged.mse and 1000 * judged.mse)
    return (
        f"{f.fid:.3f}", kid, f"{f.inception_score:.2f}", f"{f.precision:.3f}", f"{f.recall:.3f}",
        *("" if value is None else f"{value:.3f}" for value in near),
    )  # fmt: skip


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """All of it as plain data."""
    return asdict(evaluation)


def write_grid(samples: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a PNG with the first images of each set, uint8 [N, C, H, W], one named row a set.

    Images in one column started from the same noise.

    Raises:
        RedistillError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(TILES * 0.62 + 1.6, 0.72 * len(samples) + 0.2), layout="constrained")
    axes = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for axis, (name, pixels) in zip(axes, samples.items(), strict=True):
        strip = make_grid(pixels[:TILES], nrow=TILES, padding=1, pad_value=255)
        axis.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    write_atomically(path, buffer.getvalue())


def _source(judged: Judged) -> str:
    count = f"{judged.fidelity.images} images"
    return ", ".join(filter(None, (judged.description, count, judged.sampling)))
