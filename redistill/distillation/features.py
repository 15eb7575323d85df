"""Features: the maps inside a network that methods read, and the graph nodes where they stand."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from redistill.distillation.method import Need, Outputs
from redistill.passes.editing import carriers
from redistill.planning.stages import Stage
from redistill.student import Student, record_of
from redistill.tracing.meta import Meta


class FeatureKind(enum.Enum):
    """What a map inside a network is to a method; see :class:`~redistill.distillation.method.Outputs`."""

    TAP = "tap"
    STAGE = "stage"
    PREACTIVATION = "pre-activation"
    REENTRY = "re-entry"
    COARSE = "pooled stage"


@dataclass(frozen=True)
class Feature:
    """A map inside a network: its kind, and the name of the tap or stage."""

    kind: FeatureKind
    name: str = ""


Nodes = Mapping[Feature, str]
"""Features by the graph nodes that hold them, shallow to deep."""


def student_nodes(student: Student, needs: frozenset[Need]) -> dict[Feature, str]:
    """The student's nodes that hold what is needed; a tap stands at its RED block's output."""
    taps = {n.meta[Meta.TAP]: n.name for n in student.graph.nodes if Meta.TAP in n.meta}
    coarse = {ours.name: ours.output for ours, _ in coarse_stages(student)} if Need.COARSE in needs else {}
    standing = carriers(student)
    places = _stage_nodes(student, needs) | _coarse_nodes(coarse)
    return _tap_nodes(taps, needs) | {f: standing[n].name if n in standing else n for f, n in places.items()}


def teacher_nodes(student: Student, needs: frozenset[Need]) -> dict[Feature, str]:
    """The nodes of the student's own teacher that hold what is needed; a tap stands at the map that is imitated."""
    taps = {tap.name: tap.teacher_node for tap in record_of(student).taps}
    coarse = {ours.name: theirs.output for ours, theirs in coarse_stages(student)} if Need.COARSE in needs else {}
    return _tap_nodes(taps, needs) | _stage_nodes(student, needs) | _coarse_nodes(coarse)


def coarse_stages(student: Student) -> list[tuple[Stage, Stage]]:
    """The stages that the student pools, each with the teacher's first later stage of the grid that it has then."""
    record = record_of(student)
    inner = [stage for stage in record.stages if not stage.boundary]
    found = []
    for stage in inner:
        factor = record.plan.by_stage[stage.index]
        like = [other for other in inner if other.grid == stage.student_grid(factor) and other.grid != stage.grid]
        found += [(stage, like[0])] if like else []
    return found


def _coarse_nodes(coarse: Mapping[str, str]) -> dict[Feature, str]:
    return {Feature(FeatureKind.COARSE, name): node for name, node in coarse.items()}


def _tap_nodes(taps: Mapping[str, str], needs: frozenset[Need]) -> dict[Feature, str]:
    return {Feature(FeatureKind.TAP, name): node for name, node in taps.items() if Need.TAPS in needs}


def _stage_nodes(student: Student, needs: frozenset[Need]) -> dict[Feature, str]:
    nodes: dict[Feature, str] = {}
    record = record_of(student)
    stages = [stage for stage in record.stages if not stage.boundary]
    if needs & {Need.STAGES, Need.POOLED}:
        nodes |= {Feature(FeatureKind.STAGE, stage.name): stage.output for stage in stages}
    if Need.PREACTIVATIONS in needs:
        nodes |= {Feature(FeatureKind.PREACTIVATION, stage.name): stage.pre_activation for stage in stages}
    if Need.REENTRY in needs and record.reentry is not None:
        nodes[Feature(FeatureKind.REENTRY)] = record.reentry
    return nodes


def as_outputs(logits: Tensor | None, maps: Mapping[str, Tensor], nodes: Nodes) -> Outputs:
    """A graph's output and its maps by node as :class:`Outputs`."""

    def of(kind: FeatureKind) -> dict[str, Tensor]:
        return {feature.name: maps[node] for feature, node in nodes.items() if feature.kind is kind}

    return Outputs(
        logits=logits,
        taps=of(FeatureKind.TAP),
        stages=of(FeatureKind.STAGE),
        preactivations=of(FeatureKind.PREACTIVATION),
        reentry=of(FeatureKind.REENTRY).get(""),
        coarse=of(FeatureKind.COARSE),
    )
