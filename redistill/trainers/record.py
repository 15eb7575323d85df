"""What a run leaves to be read: a JSONL log, TensorBoard where installed, curves and a closing table."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.utils import save_image

from redistill.trainers.checkpoint import write_atomically

Entry = dict[str, Any]
VISIBLE = 64
"""Pixels from which on an image is seen well."""


class Record:
    """The log of a run, one JSON object a line: {"kind": "train" | "validation" | ..., "step": ..., values}."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.path = folder / "log.jsonl"
        self.writes = writes
        self._board = _tensorboard(folder) if writes else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append an entry."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step, before it is done anew."""
        if self.writes and self.path.exists():
            kept = [entry for entry in self.entries() if entry["step"] <= step]
            write_atomically(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def entries(self) -> list[Entry]:
        """All entries; a last line that was cut short by a kill is left out."""
        found: list[Entry] = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def draw_curves(entries: Sequence[Entry], path: Path) -> None:
    """One panel for the losses and one for the validation metrics, against the step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    hidden = {"epoch", "learning_rate", "images_per_second"}
    for axis, kind, title in ((losses, "train", "training losses"), (metrics, "validation", "validation")):
        for name, points in _series(entries, kind).items():
            if name not in hidden:
                axis.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def render_grid(images: Tensor) -> bytes:
    """Images [N, C, H, W] in [0, 1] as a PNG, in rows that are about as many as they are long; small ones enlarged."""
    buffer, times = io.BytesIO(), max(1, VISIBLE // images.shape[-1])
    images = images.cpu().repeat_interleave(times, 2).repeat_interleave(times, 3)
    save_image(images, buffer, format="png", nrow=math.ceil(math.sqrt(len(images))))
    return buffer.getvalue()


def _series(entries: Sequence[Entry], kind: str) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in entries:
        if entry["kind"] == kind:
            for name, value in entry.items():
                if name not in ("kind", "step"):
                    series[name].append((entry["step"], value))
    return series


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns under the first row's heads; columns after the first are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in _cells(row, widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(row: Sequence[str], widths: Sequence[int]) -> enumerate[tuple[str, int]]:
    return enumerate(zip(row, widths, strict=True))


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
