"""An evaluation as a table, as JSON, and its images as a grid."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torchvision.utils import make_grid

from redistill.internal.files import write_atomically
from redistill.internal.tables import render_table
from redistill.studies.evaluation.evaluating import Evaluation, Judged
from redistill.studies.evaluation.pictures import TILES

FLOOR = "real"
COLUMNS = {
    "fid": ("FID", 1, 3),
    "kid": ("KID x1000", 1000, 2),
    "inception_score": ("IS", 1, 2),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "ssim": ("SSIM", 1, 3),
    "mse": ("MSE x1000", 1000, 1),
}
"""By the name of a score: how it is headed, multiplied and rounded."""


def render(evaluation: Evaluation) -> str:
    """The table, and below it all that the scores depend on."""
    rows: list[tuple[str, ...]] = [("", *(head for head, _, _ in COLUMNS.values()))]
    for name, judged in evaluation.judged.items():
        rows.append((name, *cells(list_scores(asdict(judged)))))
    rows.append((FLOOR, *cells(asdict(evaluation.floor))))
    sources = [f"{name}: {_describe(judged)}" for name, judged in evaluation.judged.items()]
    return "\n".join([render_table(rows), "", *sources, *describe_reference(to_json(evaluation))])


def list_scores(judged: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a judged set, from its JSON, by name."""
    near = {name: judged[name] for name in ("ssim", "mse") if judged[name] is not None}
    return {**judged["fidelity"], **near}


def cells(scores: Mapping[str, float], spreads: Mapping[str, float] | None = None) -> list[str]:
    """Each column's score, empty where there is none; with its spread where one is given."""
    shown = []
    for name, (_, unit, digits) in COLUMNS.items():
        text = f"{unit * scores[name]:.{digits}f}" if name in scores else ""
        shown.append(text + (f" ± {unit * spreads[name]:.{digits}f}" if text and spreads and name in spreads else ""))
    return shown


def describe_reference(data: Mapping[str, Any]) -> list[str]:
    """What an evaluation's scores were computed with, from its JSON."""
    return [
        f"{FLOOR}: the floor, {data['floor_description']}",
        f"reference: {data['reference']}",
        f"extractor: {data['extractor']}, sha256 {data['extractor_digest'][:8]}",
    ]


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

    figure = Figure(figsize=(0.62 * TILES, 0.85 * len(samples)), layout="constrained")
    axes = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for axis, (name, pixels) in zip(axes, samples.items(), strict=True):
        strip = make_grid(pixels[:TILES], nrow=TILES, padding=1, pad_value=255)
        axis.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(name, loc="left", fontsize=9, pad=3)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    write_atomically(path, buffer.getvalue())


def _describe(judged: Judged) -> str:
    count = f"{judged.fidelity.images} images"
    return ", ".join(filter(None, (judged.description, count, judged.sampling)))
