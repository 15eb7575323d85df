"""What a run leaves to be read: a JSONL log, TensorBoard where installed, and curves."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.utils import save_image

from redistill.internal.files import append, refuse_link, write_atomically
from redistill.trainers.folder import RunFolder

Entry = dict[str, Any]
VISIBLE = 64
"""Pixels from which on an image is seen well."""


class Record:
    """The log of a run, one JSON object a line: {"kind": "train" | "validation" | ..., "step": ..., values}."""

    def __init__(self, folder: Path | RunFolder, *, writes: bool = True) -> None:
        folder = RunFolder.at(folder)
        self.path = folder.log
        self.writes = writes
        self._board = _tensorboard(folder.board) if writes else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append an entry."""
        if not self.writes:
            return
        append(self.path, json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def read(self) -> str:
        """The log as it is, for a checkpoint."""
        return "".join(json.dumps(entry) + "\n" for entry in self.entries())

    def restore(self, text: str) -> None:
        """Make the log what it was at a checkpoint: what came after is done, and written, anew."""
        if self.writes and (text or self.path.exists()):
            write_atomically(self.path, text.encode())

    def entries(self) -> list[Entry]:
        """All entries; a line that was cut short by a kill, or that is none, is left out."""
        found: list[Entry] = []
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        for line in lines:
            with suppress(ValueError, RecursionError):
                entry = json.loads(line)
                found += [entry] if isinstance(entry, dict) and {"kind", "step"} <= entry.keys() else []
        return found


def draw_curves(entries: Sequence[Entry]) -> bytes:
    """A PNG: one panel for the losses and one for the validation metrics, against the step."""
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
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return buffer.getvalue()


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


def _tensorboard(folder: Path) -> Any:
    refuse_link(folder)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
