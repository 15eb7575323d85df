"""How the reports say things: places, conventions and verdicts, the same in text, plot and page."""

from __future__ import annotations

from redistill.internal.text import format_bytes, format_count, format_shape, format_share
from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import Buffer, MemoryProfile, Step
from redistill.planning.objectives import FIDELITY
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.plan import PoolingPlan
from redistill.report.tiles import tile_of


def describe_convention(convention: Convention) -> str:
    """The convention by name and in words."""
    return f"{convention} convention: {convention.about}"


def step_place(step: Step) -> str:
    """Where an operation is: its module's path, with the node's name where that says more, and which tile it is.

    >>> step_place(Step("features_0_tile2of12", "features.0", 0))
    'features.0, tile 2 of 12'
    """
    tile = tile_of(step.node)
    if tile is not None:
        return f"{_node_place(tile.origin, step.module)}, {tile}"
    return _node_place(step.node, step.module)


def _node_place(node: str, module: str) -> str:
    if not module:
        return node
    return module if node == module.replace(".", "_") else f"{module} ({node})"


def buffer_place(buffer: Buffer) -> str:
    """Where a buffer was made: the graph's input, or its module's path."""
    if buffer.is_input:
        return f"input {buffer.node}"
    return buffer.module or buffer.node


def buffer_kind(buffer: Buffer) -> str:
    """Shape and element type; what an operation needs only within itself has neither."""
    return f"{format_shape(buffer.shape)} {buffer.dtype}".strip() if buffer.shape else buffer.dtype


def describe_extra(extra_macs: int) -> str:
    """What patches compute more or, where strides leave rows unread that whole maps would compute, less.

    >>> describe_extra(2000), describe_extra(-2000), describe_extra(0)
    (', 2.000 K more by patches', ', 2.000 K fewer by patches', '')
    """
    if not extra_macs:
        return ""
    return f", {format_count(abs(extra_macs))} {'more' if extra_macs > 0 else 'fewer'} by patches"


def describe_budget(teacher_peak: int, student_peak: int, limit: int | None) -> str:
    """Both peaks, the reduction, and whether the budget is met.

    >>> describe_budget(7225344, 1806336, 1806336)
    '6.891 MiB -> 1.723 MiB, 4.00x under a budget of 1.723 MiB'
    """
    return f"{format_bytes(teacher_peak)} -> {format_bytes(student_peak)}, " + describe_reduction(
        teacher_peak, student_peak, limit
    )


def describe_reduction(teacher_peak: int, student_peak: int, limit: int | None) -> str:
    """How many times less, and whether that meets the budget."""
    ratio = f"{teacher_peak / max(student_peak, 1):.2f}x"
    if limit is None:
        return f"{ratio} (no budget was set)"
    if student_peak <= limit:
        return f"{ratio} under a budget of {format_bytes(limit)}"
    return f"{ratio}, {format_bytes(student_peak - limit)} OVER the budget of {format_bytes(limit)}"


def describe_verdict(student_peak: int, limit: int | None) -> str:
    """Whether the budget is met, in two or three words."""
    if limit is None:
        return "no budget"
    return "budget met" if student_peak <= limit else "budget NOT met"


def describe_order(profile: MemoryProfile) -> str:
    """How the peak compares with the bound over all orders of execution."""
    if profile.lower_bound is None:
        return "not known: no bound over orders under this convention"
    bound = format_bytes(profile.lower_bound)
    if profile.peak_bytes <= profile.lower_bound:
        return f"the order is optimal: no order of these operations needs less than {bound}"
    excess = format_share(profile.peak_bytes - profile.lower_bound, profile.lower_bound)
    return f"{excess} above the lower bound of {bound} over all orders"


def describe_proof(plan: PoolingPlan, patches: PatchPlan | None) -> str:
    """Why no better plan fits, of what was searched for."""
    proofs = [str(plan.certificate)] if plan.certificate else []
    if patches is not None and patches.certificate:
        proofs.append(f"patches: {patches.certificate}")
    unproven = "judged by pictures, see the notes" if plan.objective == FIDELITY else "given, not searched for"
    return "; ".join(proofs) or unproven
