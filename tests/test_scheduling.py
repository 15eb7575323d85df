"""The order of operations: its bound, the best one by brute force, and the pass that carries it out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from redistill import measure, profile
from redistill.memory.conventions import ARENA, DEPLOY, GRAPH, Convention
from redistill.memory.lifetimes import lifetimes, timeline
from redistill.memory.order import best_order, lower_bound
from redistill.memory.recording import GraphRecord, record_graph
from redistill.models import load_model
from redistill.passes.reorder import ReorderPass
from tests.graphs import MAP, image, legal_orders, operation, reordered, simulate, storage, trace

CONVENTIONS = (GRAPH, ARENA, DEPLOY)
SIZES = st.sampled_from([1, 2, 3, 5, 8])


@st.composite
def records(draw, writes: bool = False, operations: int = 6) -> GraphRecord:
    """A random graph of one or two inputs; with ``writes``, in-place writes as well."""
    inputs = draw(st.integers(1, 2))
    storages = [storage(f"input{i}", draw(SIZES), is_input=True) for i in range(inputs)]
    steps = [operation(f"input{i}", creates=[i]) for i in range(inputs)]
    for number in range(operations - draw(st.integers(0, 3))):
        reads = draw(st.lists(st.integers(0, len(storages) - 1), min_size=1, max_size=2, unique=True))
        transient, overwrites = draw(st.sampled_from([0, 0, 4])), draw(st.booleans())
        if writes and draw(st.booleans()):  # the first of what it reads
            steps.append(operation(f"write{number}", reads, (), reads[:1], transient, overwrites))
            continue
        storages.append(storage(f"node{number}", draw(SIZES)))
        steps.append(operation(f"node{number}", reads, [len(storages) - 1], (), transient, overwrites))
    return GraphRecord(tuple(steps), tuple(storages))


def peak_of(record: GraphRecord, convention: Convention) -> int:
    return max(step.live_bytes for step in timeline(record, lifetimes(record, convention), convention))


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@settings(max_examples=60)
@given(record=records())
def test_the_best_order_is_that_of_brute_force(convention, record):
    peaks = {order: simulate(record, order, convention) for order in legal_orders(record)}
    found = best_order(record, convention)
    assert found.optimal
    assert found.positions in peaks
    assert found.peak_bytes == peaks[found.positions] == min(peaks.values())


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@settings(max_examples=40)
@given(record=records())
def test_no_order_goes_below_the_bound_and_lifetimes_agree_with_a_plain_simulation(convention, record):
    bound = lower_bound(record, convention)
    for order in legal_orders(record):
        again = reordered(record, order)
        assert bound <= peak_of(again, convention) == simulate(record, order, convention)
        assert lower_bound(again, convention) == bound


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
@settings(max_examples=60)
@given(record=records(writes=True))
def test_with_in_place_writes_too(convention, record):
    peaks = {order: peak_of(reordered(record, order), convention) for order in legal_orders(record)}
    found = best_order(record, convention)
    assert lower_bound(record, convention) <= found.peak_bytes == peaks[found.positions] == min(peaks.values())
    if convention is GRAPH:
        assert peaks == {order: simulate(record, order, GRAPH) for order in peaks}


def test_operations_reached_again_at_a_lower_peak_count():
    # x (1) -> a (8) -> c (4) and x -> b (4), joined in d (4). As written b waits beside a and c: 8 + 4 + 4 = 16.
    # With c before b: a 1 + 8, c 1 + 8 + 4 = 13, b 1 + 4 + 4, d 4 + 4 + 4 = 12. {x, a, b, c} is reached both ways.
    sizes, reads = (1, 8, 4, 4, 4), ([], [0], [0], [1], [2, 3])
    storages = tuple(storage(name, size, name == "x") for name, size in zip("xabcd", sizes, strict=True))
    record = GraphRecord(tuple(operation("", read, [index]) for index, read in enumerate(reads)), storages)
    found = best_order(record, ARENA)
    assert peak_of(record, ARENA) == 16
    assert (found.positions, found.peak_bytes, found.optimal) == ((0, 1, 3, 2, 4), 13, True)


def test_an_order_that_meets_the_bound_is_left_alone():
    record = record_graph(trace(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), image(2)), [image(2)])
    for convention in CONVENTIONS:
        found = best_order(record, convention)
        assert found.positions == tuple(range(len(record.operations)))
        assert found.optimal
        assert found.peak_bytes == peak_of(record, convention) == lower_bound(record, convention)


def test_a_search_cut_short_is_improved_step_by_step_and_claims_nothing():
    record = record_graph(trace(Projection(), image(4)), [image(4)])
    found = best_order(record, DEPLOY, max_states=1)
    assert (found.positions, found.peak_bytes, found.optimal) == ((0, 1, 3, 2, 4, 5), 17 * MAP, False)


class Projection(nn.Module):
    """x (4) -> narrow (1) -> wide (8), then the projected shortcut x -> project (8), and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.project = nn.Conv2d(4, 1, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(self.narrow(x))
        return wide + self.project(x)


def test_projecting_the_shortcut_first_provably_helps():
    # As written, at project: x 4 + wide 8 + project 8 = 20. Projected after narrow: x 4 + 1 + 8 = 13, then
    # wide: 1 + 8 + 8 = 17, and the sum in place is 16. The bound is 16: any order must hold both summands.
    record = record_graph(trace(Projection(), image(4)), [image(4)])
    found = best_order(record, DEPLOY)
    assert peak_of(record, DEPLOY) == 20 * MAP
    assert lower_bound(record, DEPLOY) == 16 * MAP
    assert (found.peak_bytes, found.optimal) == (17 * MAP, True)


def test_the_pass_carries_the_better_order_out():
    module = trace(Projection(), image(4))
    x = image(4)
    before = module(x)
    assert ReorderPass("deploy")(module).modified
    assert torch.equal(module(x), before)
    assert profile(module, x).peak_bytes == 17 * MAP
    assert not ReorderPass("deploy")(module).modified


class TwoBranches(nn.Module):
    """x (1) -> 8 -> 4 and x -> 16 -> 1, concatenated to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.light = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1))
        self.heavy = nn.Sequential(nn.Conv2d(1, 16, 1), nn.Conv2d(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.light(x), self.heavy(x)], 1)


def test_the_meter_finds_what_the_pass_promised():
    # As written the light branch's 4 wait for the heavy one: x 1 + 4 + 16 + 1 = 22. The other way round
    # x 1 + 16 + 1 = 18, then x 1 + 1 + 8 + 4 = 14.
    x = image(1)
    module = trace(TwoBranches(), x)
    before = module(x)
    assert measure(module, x) == 22 * MAP
    assert ReorderPass("graph")(module).modified
    assert torch.equal(module(x), before)
    assert measure(module, x) == profile(module, x, "graph").peak_bytes == 18 * MAP


class WriteAfterRead(nn.Module):
    """``early`` reads the stem before it is overwritten in place, ``late`` after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early, self.late = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 16, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        early = self.early(stem)
        late = self.late(stem.relu_())
        return torch.cat([early, late], 1)


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_an_in_place_write_stays_after_those_who_read_before_it(convention):
    x = image(1)
    module = trace(WriteAfterRead(), x)
    names = [o.node for o in record_graph(module, [x]).operations]
    found = best_order(record_graph(module, [x]), convention)
    position = {names[index]: place for place, index in enumerate(found.positions)}
    assert position["stem"] < position["early"] < position["relu_"] < position["late"]
    before = module(x)
    ReorderPass(convention)(module)
    assert torch.equal(module(x), before)


@settings(max_examples=60)
@given(record=records(writes=True), convention=st.sampled_from(CONVENTIONS))
def test_writes_keep_their_place_among_the_readers_of_their_memory(record, convention):
    position = {index: place for place, index in enumerate(best_order(record, convention).positions)}
    for write, writing in enumerate(record.operations):
        for target in writing.mutates:
            for other, touching in enumerate(record.operations):
                if other != write and target in (*touching.reads, *touching.creates):
                    assert (position[other] < position[write]) == (other < write)


class TwoInputs(nn.Module):
    """``small`` is expanded before ``large`` is reduced; the better order is the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.fold, self.reduce = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1), nn.Conv2d(16, 1, 1)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        left = self.fold(self.expand(small))
        return torch.cat([left, self.reduce(large)], 1)


def test_inputs_stay_where_the_caller_gives_them():
    # expand holds small 1 + large 16 + 8 = 25; reduced first: small 1 + large 16 + 1 = 18, then 1 + 1 + 8 = 10
    small, large = image(1), image(16)
    module = trace(TwoInputs(), small, large)
    before = module(small, large)
    assert profile(module, (small, large)).peak_bytes == 25 * MAP
    assert best_order(record_graph(module, [small, large]), DEPLOY).peak_bytes == 18 * MAP
    assert ReorderPass("deploy")(module).modified
    assert [n.name for n in module.graph.find_nodes(op="placeholder")] == ["small", "large"]
    assert torch.equal(module(small, large), before)
    assert profile(module, (small, large)).peak_bytes == 18 * MAP


def test_fcn_resnet50_needs_a_tenth_less_in_the_better_order():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    module = trace(load_model("torchvision:fcn_resnet50", "random"), x, check=False)
    # layer4.0 on its 28x28 grid: input 1024, result 2048 and projected shortcut 2048; projected first, the shortcut
    # waits beside the bottleneck's 512 and the result
    before = profile(module, x)
    assert before.peak_bytes == 4 * 28**2 * (1024 + 2048 + 2048) == 15.3125 * 2**20
    assert ReorderPass("deploy")(module).modified
    after = profile(module, x)
    assert after.peak_bytes == 4 * 28**2 * (512 + 2048 + 2048) == 13.78125 * 2**20
    assert after.lower_bound == after.peak_bytes  # no order is better
    assert round(after.peak_bytes / before.peak_bytes - 1, 3) == -0.1


def test_fcn_resnet50_computes_the_same_to_the_bit_in_the_better_order():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    module = trace(load_model("torchvision:fcn_resnet50", "random"), x, check=False)
    with torch.no_grad():
        before = module(x)
        assert ReorderPass("deploy")(module).modified
        after = module(x)
    assert torch.equal(before["out"], after["out"])


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet?init_weights=false&aux_logits=false", "densenet121"])
def test_classifiers_run_in_an_order_that_nothing_beats(name):
    x = torch.randn(1, 3, 64, 64)
    found = profile(trace(load_model(f"torchvision:{name}", "random"), x, check=False), x)
    assert found.lower_bound == found.peak_bytes
