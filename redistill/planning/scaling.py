"""Scaling: how a recorded network shrinks with its pooling factors, as the planning problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from redistill.memory.conventions import Convention
from redistill.memory.lifetimes import Buffer, lifetimes
from redistill.memory.recording import GraphRecord, Storage
from redistill.planning.crossings import SIDES, Crossing
from redistill.planning.growth import growth_exponent
from redistill.planning.problem import BETWEEN, FACTORS, ConditionalRows, Matrix, PlanningProblem
from redistill.planning.red_overhead import red_overhead
from redistill.planning.stages import StageGraph, Transition, coarse
from redistill.planning.taps import tap_activity, tap_name


class ScalingModel:
    """Bytes and operations of each stage of a network as functions of its pooling factor."""

    def __init__(self, stages: StageGraph, convention: Convention, choices: Sequence[Sequence[int]]) -> None:
        self.stages = stages
        self.convention = convention
        self.choices = tuple(tuple(c) for c in choices)
        self.steps = len(stages.record.operations)
        self.step_of = {o.node: t for t, o in enumerate(stages.record.operations)}
        self.buffers = lifetimes(stages.record, convention)
        self._grown = _match_storages(stages.record, stages.grown)

    def problem(self, crossings: Sequence[Crossing] = ()) -> PlanningProblem:
        """The planning problem; with ``crossings``, the memory of the RED blocks at their taps is part of it."""
        constant, usage = self._rows(self.buffers)
        if self.convention.counts_transients:
            self._add_transients(constant, usage)
        taps = tuple(self._tap_rows(c, side, crossings) for c in crossings for side in SIDES)
        shuffles = tuple(
            self._shuffle_rows(t)
            for t in self.stages.transitions
            if t.operator == "convolution" and not t.yields_features
        )
        rows = tuple(r for r in (*shuffles, *taps) if r.active.any())
        return PlanningProblem(self.choices, constant, usage, self._macs(), self._legal(), rows)

    def _rows(self, buffers: Sequence[Buffer]) -> tuple[np.ndarray, tuple[Matrix, ...]]:
        # What no factor changes is kept apart, in ``constant``: a buffer of no stage (weights' products, the head's
        # vectors) and one that did not grow with the image. The input is a stage as well, whose one choice is factor
        # 1; its bytes stand in its rows and so in every plan, just as the constant does.
        constant = np.zeros(self.steps)
        usage = tuple(np.zeros((len(c), self.steps)) for c in self.choices)
        for buffer in buffers:
            stage, sizes = self.sizes(buffer)
            span = slice(buffer.born, buffer.dies + 1)
            if stage is None:
                constant[span] += buffer.bytes
            else:
                usage[stage][:, span] += sizes[:, None]
        return constant, usage

    def sizes(self, buffer: Buffer) -> tuple[int | None, np.ndarray]:
        """The stage a buffer belongs to (None if it does not scale) and its bytes at each of the stage's factors."""
        stage = self.stages.stage_of.get(buffer.node)
        large = self._grown.get(buffer.storage)
        if stage is None or large is None:
            return None, np.empty(0)
        grid = _grown_sides(buffer.shape, large.shape)
        if grid and growth_exponent(buffer.bytes, large.bytes, len(grid)) == 1:
            return stage, _whole(buffer.bytes * self._shares(stage, grid))
        exponent = self._exponent(stage, buffer.bytes, large.bytes)
        if exponent == 0:
            return None, np.empty(0)
        return stage, _whole(buffer.bytes * self._shares(stage) ** exponent)

    def _exponent(self, stage: int, small: int, large: int) -> float:
        return float(growth_exponent(small, large, len(self.stages.stages[stage].grid)))

    def _shares(self, stage: int, grid: Sequence[int] | None = None) -> np.ndarray:
        """The part of a grid's cells that is left at each factor; of the stage's own grid if none is given."""
        sides = self.stages.stages[stage].grid if grid is None else grid
        return np.array([math.prod(coarse(sides, d)) / math.prod(sides) for d in self.choices[stage]])

    def _add_transients(self, constant: np.ndarray, usage: tuple[Matrix, ...]) -> None:
        for step, operation in enumerate(self.stages.record.operations):
            stage = self.stages.stage_of.get(operation.node)
            if stage is None:
                constant[step] += operation.transient_bytes
            else:
                larger = self.stages.grown.operations[step].transient_bytes
                shares = self._shares(stage) ** self._exponent(stage, operation.transient_bytes, larger)
                usage[stage][:, step] += _whole(operation.transient_bytes * shares)

    def _macs(self) -> tuple[np.ndarray, ...]:
        totals = tuple(np.zeros(len(c)) for c in self.choices)
        by_input = {t.node: t.source for t in self.stages.transitions if t.operator == "transposed"}
        for step, operation in enumerate(self.stages.record.operations):
            stage = by_input.get(operation.node, self.stages.stage_of.get(operation.node))
            if stage is not None and operation.macs:
                exponent = self._exponent(stage, operation.macs, self.stages.grown.operations[step].macs)
                totals[stage][:] += operation.macs * self._shares(stage) ** exponent if exponent else 0
        return totals

    def _legal(self) -> dict[tuple[int, int], np.ndarray]:
        tables: dict[tuple[int, int], np.ndarray] = {}
        for t in self.stages.transitions:
            if t.source == t.target:
                continue
            table = np.array([[t.is_legal(x, y) for y in self.choices[t.target]] for x in self.choices[t.source]])
            key = (t.source, t.target)
            tables[key] = tables[key] & table if key in tables else table
        return tables

    def _shuffle_rows(self, transition: Transition) -> ConditionalRows:
        """While a tail's map is enlarged: what outlives the tail, and the map once more, before it is (see passes)."""
        step = self.step_of[transition.node]
        constant, usage = self._rows([b for b in self.buffers if b.born <= step < b.dies])
        rows = [u[:, step : step + 1].copy() for u in usage]
        operation = self.stages.record.operations[step]
        made = sum(self.stages.record.storages[i].bytes for i in operation.creates)
        sides = [operation.shape[axis] for axis in transition.axes]
        rows[transition.target] += _whole(made * self._shares(transition.target, sides))[:, None]
        rows[0] += constant[step]
        enlarges = [
            [any(s.denominator > 1 for s in transition.student_strides(x, y)) for y in self.choices[transition.target]]
            for x in self.choices[transition.source]
        ]
        source, target = transition.source, transition.target
        return ConditionalRows(transition.node, source, target, np.array(enlarges), tuple(rows))

    def _tap_rows(self, crossing: Crossing, side: str, crossings: Sequence[Crossing]) -> ConditionalRows:
        """While a RED block runs: what outlives the tapped node, and what the block needs beside it."""
        step = self.step_of[crossing.node(side)]
        after = [b for b in self.buffers if b.born <= step < b.dies]
        constant, usage = self._rows(after)
        rows = [u[:, step : step + 1].copy() for u in usage]
        stage = crossing.stage(side)
        rows[stage] += (self._map_bytes(crossing, side) * red_overhead(self.convention))[:, None]
        rows[0] += constant[step]
        active = tap_activity(crossing, side, crossings, self.stages, self.choices)
        return ConditionalRows(tap_name(crossing.module, side), crossing.source, crossing.target, active, tuple(rows))

    def _map_bytes(self, crossing: Crossing, side: str) -> np.ndarray:
        """Bytes of the tapped map at each factor of its stage."""
        operation = self.stages.record.operations[self.step_of[crossing.node(side)]]
        storages = self.stages.record.storages
        own = storages[(*operation.creates, *operation.reads)[0]]
        per_value = own.bytes / max(1, math.prod(own.shape))
        return _whole(math.prod(operation.shape) * per_value * self._shares(crossing.stage(side), operation.shape[2:]))


def candidate_factors(stages: StageGraph, restore_deepest: bool = True) -> tuple[tuple[int, ...], ...]:
    """The factors each stage may take: 1 where it is fixed, no more than its side, and 1 for the deepest stage.

    Between the powers of two are those that divide the grid, where strides lead from them to the next stage's.
    Restoring the grid of the deepest stage keeps what the teacher's head has learnt to read.
    """
    inner = [s for s in stages.free if s.fixed is None]
    deepest = min(inner, key=lambda s: (math.prod(s.grid), -s.index), default=None)
    choices = [
        (1,) if stage.fixed or stage.boundary or (restore_deepest and stage is deepest) else _factors_of(stage.grid)
        for stage in stages.stages
    ]
    return _without_dead_ends(choices, stages)


def _factors_of(grid: Sequence[int]) -> tuple[int, ...]:
    sides = [side for side in grid if side > 1]
    between = [d for d in BETWEEN if all(side % d == 0 for side in sides)]
    return tuple(d for d in sorted((*FACTORS, *between)) if d <= min(sides, default=1))


def _without_dead_ends(choices: list[tuple[int, ...]], stages: StageGraph) -> tuple[tuple[int, ...], ...]:
    """Leave out factors between the powers of two that no transition can take, until none is left."""
    while True:
        kept = list(choices)
        for t in stages.transitions:
            for here, there in ((t.source, t.target), (t.target, t.source)):
                kept[here] = tuple(
                    factor
                    for factor in kept[here]
                    if factor not in BETWEEN or any(_is_legal(t, here, factor, other) for other in choices[there])
                )
        if kept == choices:
            return tuple(kept)
        choices = kept


def _whole(sizes: np.ndarray) -> np.ndarray:
    """Bytes are whole: a plan that meets the limit exactly must not fail it by a rounding error."""
    rounded: np.ndarray = np.rint(sizes)
    return rounded


def _grown_sides(small: Sequence[int], large: Sequence[int]) -> tuple[int, ...]:
    """The sides of a shape that are longer in the other."""
    return tuple(s for s, g in zip(small, large, strict=True) if s != g) if len(small) == len(large) else ()


def _match_storages(record: GraphRecord, grown: GraphRecord) -> dict[int, Storage]:
    """The same storage at the larger size for each storage of ``record``, matched by the node that makes it."""
    larger = {key: grown.storages[index] for key, index in _keys(grown)}
    return {index: larger[key] for key, index in _keys(record) if key in larger}


def _keys(record: GraphRecord) -> list[tuple[tuple[str, int], int]]:
    seen: dict[str, int] = {}
    keys = []
    for index, storage in enumerate(record.storages):
        ordinal = seen.get(storage.node, 0)
        seen[storage.node] = ordinal + 1
        keys.append(((storage.node, ordinal), index))
    return keys


def _is_legal(transition: Transition, stage: int, factor: int, other: int) -> bool:
    """Whether ``factor`` at ``stage`` goes with ``other`` on the transition's other side."""
    forth = stage == transition.source
    return transition.is_legal(factor, other) if forth else transition.is_legal(other, factor)
