"""Accuracies that are known: from a file of the user's, or from the summary of a trainer's run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.errors import RedistillError
from redistill.internal.documents import LARGEST
from redistill.internal.files import read_text
from redistill.internal.reasons import reason
from redistill.trainers.folder import RunFolder

FORM = "write model,teacher,student as CSV, or {MODEL: {teacher: PERCENT, student: PERCENT}} as JSON"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracies in percent; None where not known."""

    teacher: float | None
    student: float | None


def read_accuracies(path: str | Path) -> dict[str, Accuracy]:
    """Accuracies by model, from JSON or CSV (by the file's ending).

    Raises:
        RedistillError: the file is missing or has another form.
    """
    try:
        text = read_text(Path(path), LARGEST)
        rows = _rows_of_csv(text) if Path(path).suffix.lower() == ".csv" else json.loads(text)
        return {name: Accuracy(_percent(row, "teacher"), _percent(row, "student")) for name, row in rows.items()}
    except OSError as error:
        raise RedistillError(f"cannot read the accuracies in {path}: {reason(error)}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, csv.Error) as error:
        raise RedistillError(f"cannot read the accuracies in {path}: {error}; {FORM}") from error


def _rows_of_csv(text: str) -> dict[str, dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames is None or "model" not in reader.fieldnames:
        raise ValueError("it has no column 'model'")
    return {row["model"]: row for row in reader}


def _percent(row: Mapping[str, Any], role: str) -> float | None:
    unknown = set(row) - {"model", "teacher", "student"}
    if unknown:
        raise ValueError(f"{sorted(map(str, unknown))[0]!r} is neither teacher nor student")
    return _as_percent(row.get(role))


def _as_percent(value: Any) -> float | None:
    if value is None or value == "":
        return None
    percent = float(value)
    if not 0 <= percent <= 100:
        raise ValueError(f"{value} is not a percentage")
    return percent


def accuracy_of_run(folder: Path) -> Accuracy | None:
    """Test top-1 of a run's teacher and of its last student; None where there is no summary or another metric.

    Raises:
        RedistillError: the summary is damaged.
    """
    path = RunFolder(folder).summary
    if not path.is_file():
        return None
    try:
        summary = RunFolder(folder).read_summary(RedistillError)
        found = (summary.get("teacher", {}).get("test", {}), summary.get("last", {}).get("test", {}))
        values = [_as_percent(metrics.get("top1")) for metrics in found]
    except (ValueError, AttributeError, TypeError) as error:
        raise RedistillError(f"{path} is not the summary of a run: {error}; remove it, or run again") from error
    return Accuracy(*values) if any(value is not None for value in values) else None
