"""What is said of an exported file: on the terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from torch import nn

from redistill.export.exporting import Exported
from redistill.export.microcontroller import InterpreterArena
from redistill.export.preparation import PreparedModel
from redistill.internal.text import format_bytes, format_shapes
from redistill.memory.conventions import DEPLOY
from redistill.student import Student, record_of


def render(exported: Exported, prepared: PreparedModel, model: nn.Module) -> str:
    """A few lines: what was exported, its memory, its parity, and where it is."""
    lines = [("network", f"{type(model).__name__} at {format_shapes(prepared.inputs)}"), *_memory(prepared, model)]
    if exported.account is not None:
        lines.append(("arena", f"{exported.account.planned:,} bytes planned; {_compare(exported)}"))
    if exported.own_plans is not None:
        lines.append(("", f"{exported.own_plans['greedy']:,} bytes if ExecuTorch plans it by itself"))
    if exported.format == "executorch":
        lines.append(("", "what XNNPACK takes while it runs is its own; --format executorch-portable plans every byte"))
    if exported.interpreter is not None:
        lines += _interpreter(exported, prepared)
    lines.append(("parity", f"max relative error {exported.parity.relative_error:.1e} in its own runtime"))
    if exported.parity.alike:
        lines.append(("", "which proves nothing: the network gives one value throughout; export a trained one"))
    if exported.quantization_error is not None:
        lines.append(("int8", f"max relative error {exported.quantization_error:.1e} to the float network"))
    lines.append(("file", f"{exported.path}  {format_bytes(exported.size)}"))
    if exported.sidecar is not None:
        lines.append(("", f"{exported.sidecar}  metadata"))
    return "\n".join(f"{name:8} {text}" for name, text in lines)


def to_json(exported: Exported, prepared: PreparedModel, model: nn.Module) -> dict[str, Any]:
    """The same as plain data."""
    plain = asdict(exported)
    plain |= {"path": str(exported.path), "sidecar": exported.sidecar and str(exported.sidecar)}
    peak = {"convention": prepared.convention.name, "peak_bytes": prepared.profile.peak_bytes}
    if isinstance(model, Student):
        peak["teacher_peak_bytes"] = record_of(model).teacher_profile.peak_bytes
    return {**plain, "predicted": peak, "metadata": prepared.metadata}


def _memory(prepared: PreparedModel, model: nn.Module) -> list[tuple[str, str]]:
    peak = prepared.profile.peak_bytes
    kind = f"{prepared.convention}{', int8' if prepared.int8 is not None else ''}"
    lines = [("memory", f"{format_bytes(peak)} predicted ({kind}), {peak:,} bytes")]
    if isinstance(model, Student):
        teacher = record_of(model).teacher_profile
        size = teacher.peak_bytes
        lines.append(("", f"its teacher: {format_bytes(size)} ({teacher.convention}), {size:,} bytes"))
    return lines


def _interpreter(exported: Exported, prepared: PreparedModel) -> list[tuple[str, str]]:
    """The arena, how its activations differ from those predicted, and what they are."""
    arena = exported.interpreter
    assert arena is not None
    alive = ", ".join(
        f"{f'{count} x ' if count > 1 else ''}{name} {size:,}" for (name, size), count in Counter(arena.alive).items()
    )
    return [
        ("arena", f"{arena.total:,} bytes, as the interpreter for microcontrollers reports it"),
        ("", f"{arena.activations:,} for activations, {_explain(arena, prepared.profile_under(DEPLOY).peak_bytes)}"),
        ("", f"{arena.persistent:,} for its records of tensors and operations"),
        ("", f"alive at once: {alive}"),
    ]


def _explain(arena: InterpreterArena, predicted: int) -> str:
    differences = {
        "copies with zeros around them": arena.zeros,
        "maps beside those predicted": arena.live - arena.zeros - predicted,
        "scratch and gaps": arena.activations - arena.live,
    }
    named = [f"{size:+,} {what}" for what, size in differences.items() if size]
    return f"{predicted:,} predicted {' '.join(named)}" if named else "as predicted"


def _compare(exported: Exported) -> str:
    assert exported.account is not None
    same = exported.account.planned == exported.account.predicted
    return "equal to the prediction" if same else f"predicted plus {exported.account}"
