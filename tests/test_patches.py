"""Patches: every operation's reach, the plan against exhaustive search, what is promised against what is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from redistill import measure
from redistill.memory.conventions import DEPLOY, GRAPH, Convention
from redistill.memory.profiling import profile_record
from redistill.memory.recording import record_graph
from redistill.passes.patch import PatchOrder, PatchPass
from redistill.passes.piece_calls import TILE
from redistill.passes.strip_guards import StripGuardsPass
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.programs import Form, Region
from redistill.planning.patches.segmenting import Segmentation, Segmenter
from redistill.tracing.capture import capture
from redistill.tracing.meta import Meta
from tests.graphs import image

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

FORMS = (Form(3, 2), Form(1, 3), Form(4, 4), Form(2, keeps=True), Form(5, keeps=True), Form(14, keeps=True))


class Lambda(nn.Module):
    """A function of a map between two convolutions, so that its reach meets others'."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 4, after: int = 4) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function
        self.after = nn.Conv2d(after, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def between(*layers: nn.Module, after: int = 4) -> nn.Sequential:
    """Layers between two convolutions."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, nn.Conv2d(after, 2, 3, padding=1))


def conv(*args: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, *args, **options)  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = conv(3, padding=1, bias=False), conv(3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(self.act(self.norm(self.first(x))))
        y += x
        return self.act(y)


class Gate(nn.Module):
    """A gate from channels' means at each place, one over the whole map broadcast, and a weight of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.before, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        spatial = torch.sigmoid(x.mean(1, keepdim=True))
        return self.after(spatial * x * self.scale + x.amax(dim=1, keepdim=True))


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([F.relu(b), F.avg_pool2d(a, 3, 1, 1)], 1)


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.linear(self.norm(x.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class Excited(nn.Module):
    """Squeeze and excitation: a map scaled by a gate that is made of its mean."""

    def __init__(self, kind: str = "pool", channels: int = 12, last: int = 4) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.depthwise = (
            nn.Conv2d(3, channels, 3, 2, 1),
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels),
        )
        self.pool, self.narrow, self.wide = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, 2, 1),
            nn.Conv2d(2, channels, 1),
        )
        self.last = nn.Conv2d(channels, last, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        before = F.relu(self.conv(x))
        x = F.silu(self.depthwise(before))
        mean = self.pool(x) if self.kind == "pool" else x.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(self.wide(F.relu(self.narrow(mean))))
        if self.kind == "in place":
            x *= gate
        else:
            x = gate * x
        return self.last(x + before if self.kind == "residual" else x - mean)


KINDS: dict[str, nn.Module] = {
    "3x3": between(conv(3, padding=1)),
    "stride 2": between(conv(3, stride=2, padding=1)),
    "stride 3, kernel 2": between(conv(2, stride=3)),
    "kernel 7, stride 4": between(conv(7, stride=4, padding=2)),
    "dilated": between(conv(3, padding=2, dilation=2)),
    "groups": between(conv(3, padding=1, groups=2)),
    "depthwise 5x5": between(conv(5, padding=2, groups=4)),
    "asymmetric": between(nn.Conv2d(4, 4, (1, 7), padding=(0, 3)), nn.Conv2d(4, 4, (3, 1), padding=(1, 0))),
    "same": between(conv(4, padding="same")),
    "valid": between(conv(3, padding="valid")),
    "reflect": between(conv(3, padding=1, padding_mode="reflect")),
    "replicate": between(conv(5, padding=2, padding_mode="replicate")),
    "batch norm, in place": between(nn.BatchNorm2d(4), nn.ReLU6(inplace=True)),
    "max pool": between(nn.MaxPool2d(3, 2, 1)),
    "max pool, ceil": between(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max pool, dilated": between(nn.MaxPool2d(3, 1, 1, dilation=2)),
    "average pool": between(nn.AvgPool2d(3, 2, 1)),
    "average pool, without padding": between(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "average pool, ceil": between(nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "zero pad": between(nn.ZeroPad2d((1, 2, 3, 0)), conv(3)),
    "crop": between(nn.ZeroPad2d((-1, 2, -3, -1)), conv(3, padding=1)),
    "reflection pad": between(nn.ReflectionPad2d(2), conv(5)),
    "replication pad": between(nn.ReplicationPad2d((0, 3, 1, 0)), conv(3)),
    "constant pad": Lambda(lambda x: F.pad(x, (1, 0, 0, 2), value=0.5)),
    "nearest": between(nn.Upsample(scale_factor=2), conv(3, padding=1)),
    "nearest to a size": Lambda(lambda x: F.interpolate(x, size=(48, 32))),
    "bilinear": between(nn.Upsample(scale_factor=3, mode="bilinear"), conv(3, padding=1)),
    "bicubic": between(nn.Upsample(scale_factor=2, mode="bicubic")),
    "transposed": between(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1)),
    "transposed, output padding": between(nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)),
    "transposed, dilated": between(nn.ConvTranspose2d(4, 4, 3, stride=1, padding=2, dilation=2, groups=2)),
    "shuffle": between(nn.PixelShuffle(2), after=1),
    "unshuffle": between(nn.PixelUnshuffle(2), after=16),
    "slices": Lambda(lambda x: x[:, 1:3, ::2, 1:-1], after=2),
    "sums and products": Lambda(lambda x: (x - 0.5) * torch.sigmoid(x) / 2 + x.clamp(min=0)),
    "residual": Residual(inplace=False),
    "residual, in place": Residual(inplace=True),
    "gates": Gate(),
    "halves": between(Halves()),
    "channels last": between(ChannelsLast()),
    "softmax over channels": Lambda(lambda x: F.softmax(x, dim=1)),
}


def trace(model: nn.Module, *inputs: Tensor) -> GraphModule:
    graph_module = capture(model.eval(), inputs, check=False).graph_module
    StripGuardsPass()(graph_module)
    return graph_module


def carry_out(graph_module: GraphModule, network: PatchNetwork, regions: Sequence[Region], join: str) -> GraphModule:
    """A copy of the graph, over the same modules, with the regions run piece by piece."""
    patched = GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    nodes = {n.name: n for n in patched.graph.nodes}
    for index, region in enumerate(regions):
        for step in network.steps[region.start : region.end]:
            nodes[step.node.name].meta[Meta.PATCH] = PatchOrder(index, region.form)
    PatchPass(join)(patched)
    return patched


def assert_same(graph_module: GraphModule, patched: GraphModule, *inputs: Tensor) -> None:
    """Equal outputs in double precision and in single."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = [x.to(dtype) for x in inputs]
        with torch.no_grad():
            expected = copy.deepcopy(graph_module).to(dtype)(*given)
            found = copy.deepcopy(patched).to(dtype)(*given)
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("join", ["write", "concat"])
def test_pieces_give_the_same_outputs_and_need_what_was_counted(kind: str, join: str) -> None:
    torch.manual_seed(0)
    x = image(3, 2, 16)
    graph_module = trace(KINDS[kind], x)
    record = record_graph(graph_module, (x,))
    network = PatchNetwork(graph_module, record, DEPLOY)
    start, end = 1, len(network) - 1
    assert network.is_region(start, end), [s.node.name for s in network.steps if s.rule is None]
    segmenter = Segmenter(network)
    for form in FORMS if join == "write" else FORMS[::2]:
        extra = segmenter.extra_macs(start, end, form)
        if extra is None:
            continue
        region = Region(start, end, form)
        patched = carry_out(graph_module, network, [region], join)
        assert_same(graph_module, patched, x)
        found = record_graph(patched, (x,))
        assert found.macs - record.macs == extra
        assert measure(patched, x) == profile_record(found, GRAPH).peak_bytes
        if join == "write":
            assert profile_record(found, DEPLOY).peak_bytes <= segmenter.peak(region, 1 << 40)


@pytest.mark.parametrize("kind", ["pool", "mean", "in place", "residual"])
@pytest.mark.parametrize("join", ["write", "concat"])
def test_a_gate_is_made_in_a_first_sweep(kind: str, join: str) -> None:
    torch.manual_seed(0)
    x = image(3, 2, 32)
    graph_module = trace(Excited(kind), x)
    record = record_graph(graph_module, (x,))
    network = PatchNetwork(graph_module, record, DEPLOY)
    start, end = 1, len(network) - 1
    assert network.is_region(start, end)
    assert not network.is_region(start, next(s.position for s in network.steps if s.takes_mean) + 1)
    segmenter = Segmenter(network)
    assert not any(form.keeps for form in segmenter.forms(start, end))
    for form in (Form(2, 2), Form(4, 1), Form(5, 3)):
        patched = carry_out(graph_module, network, [Region(start, end, form)], join)
        assert_same(graph_module, patched, x)
        found = record_graph(patched, (x,))
        assert found.macs - record.macs == segmenter.extra_macs(start, end, form)
        assert measure(patched, x) == profile_record(found, GRAPH).peak_bytes
        if join == "write":
            assert profile_record(found, DEPLOY).peak_bytes == segmenter.peak(Region(start, end, form), 1 << 40)


def test_two_gates_are_two_regions() -> None:
    segmenter, limit = plan(nn.Sequential(Excited(channels=24, last=3), Excited(channels=48)), image(3, 1, 64), 0.4)
    assert not segmenter.network.is_region(1, len(segmenter.network) - 1)
    found = segmenter.find(limit)
    assert found is not None
    assert [len(segmenter.stretches(r.start, r.end)) for r in found.regions] == [2, 2]


def test_there_are_forms_for_every_kind() -> None:
    x = image(3, 2, 16)
    for kind, model in KINDS.items():
        graph_module = trace(model, x)
        network = PatchNetwork(graph_module, record_graph(graph_module, (x,)), DEPLOY)
        segmenter = Segmenter(network)
        made = [f for f in FORMS if segmenter.extra_macs(1, len(network) - 1, f) is not None]
        assert {f.keeps for f in made} == {True, False}, kind


@pytest.mark.parametrize(
    "layer",
    [nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Softmax(dim=2), nn.Flatten(2),
     nn.Upsample(scale_factor=1.5), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
     conv(3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(16)],
    ids=str,
)  # fmt: skip
def test_what_looks_at_the_whole_map_ends_a_region(layer: nn.Module) -> None:
    x = image(3, 1, 16)
    graph_module = trace(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer), x)
    network = PatchNetwork(graph_module, record_graph(graph_module, (x,)), DEPLOY)
    assert network.is_region(1, 2)
    assert not network.is_region(1, 3)
    assert not network.is_region(2, 3)


class SideBySide(nn.Module):
    """Several maps alive at a cut: a small U."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.middle, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down(x))
        b = F.relu(self.low(a))
        return self.last(torch.cat([a, self.up(F.relu(self.middle(b)))], 1))


def chain(*kinds: tuple[int, int, int]) -> nn.Sequential:
    """Convolutions of (channels, kernel, stride) with activations between."""
    layers: list[nn.Module] = []
    before = 3
    for channels, kernel, stride in kinds:
        layers += [nn.Conv2d(before, channels, kernel, stride, kernel // 2), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers)


NETWORKS = {
    "wide middle": chain((8, 3, 1), (16, 3, 2), (4, 1, 1)),
    "two regions": chain((12, 3, 1), (4, 3, 2), (16, 3, 1), (4, 3, 2)),
    "kernel 5": chain((24, 5, 1), (4, 5, 2), (2, 1, 1)),
    "pointwise": chain((24, 1, 1), (24, 3, 1), (3, 1, 1)),
    "u": SideBySide(),
    "residual": Residual(inplace=True),
    "gate": Excited(channels=24),
}


def cheapest(segmenter: Segmenter, limit: int) -> int | None:
    """Fewest extra multiply-accumulates over all cuts and forms, one by one: what the shortest path must find."""
    network = segmenter.network
    best: dict[int, int] = {0: 0}
    for end in range(1, len(network) + 1):
        costs = [best[end - 1]] if end - 1 in best and network.live[end - 1] <= limit else []
        for start in (s for s in best if network.is_region(s, end)):
            for form in segmenter.forms(start, end):
                extra = segmenter.extra_macs(start, end, form)
                if extra is not None and segmenter.peak(Region(start, end, form), 1 << 40) <= limit:
                    costs.append(best[start] + max(extra, 0))
        if costs:
            best[end] = min(costs)
    found = best.get(len(network))
    return found if found is not None and found <= segmenter.most_extra else None


def plan(model: nn.Module, x: Tensor, part: float, convention: Convention = DEPLOY) -> tuple[Segmenter, int]:
    torch.manual_seed(0)
    graph_module = trace(model, x)
    network = PatchNetwork(graph_module, record_graph(graph_module, (x,)), convention)
    return Segmenter(network, max_extra_macs=2.0), int(max(network.live) * part)


def assert_cheapest(segmenter: Segmenter, limit: int) -> Segmentation | None:
    expected, found = cheapest(segmenter, limit), segmenter.find(limit)
    if expected is None:
        assert found is None
        return None
    assert found is not None
    assert found.peak_bytes <= limit
    assert expected <= found.extra_macs + 0 <= expected + 0.01 * segmenter.network.macs
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_is_the_cheapest_of_all(name: str) -> None:
    found = []
    for part in (0.9, 0.7, 0.6, 0.5, 0.4, 0.3):
        segmenter, limit = plan(NETWORKS[name], image(3, 1, 24 if name == "gate" else 12), part)
        found.append(assert_cheapest(segmenter, limit))
    assert any(f is not None and f.regions for f in found)


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from([2, 4, 12]), st.sampled_from([1, 3]), st.sampled_from([1, 2])), min_size=2,
                   max_size=4),
    part=st.sampled_from([0.8, 0.6, 0.5, 0.4]),
)  # fmt: skip
def test_plan_is_the_cheapest_of_all_for_chains(kinds: list[tuple[int, int, int]], part: float) -> None:
    segmenter, limit = plan(chain(*kinds), image(3, 1, 8), part)
    assert_cheapest(segmenter, limit)


@pytest.mark.parametrize("convention", [DEPLOY, GRAPH], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_promised_is_what_is_measured(name: str, convention: Convention) -> None:
    x = image(3, 1, 24)
    graph_module = trace(NETWORKS[name], x)
    network = PatchNetwork(graph_module, record_graph(graph_module, (x,)), convention)
    segmenter = Segmenter(network, max_extra_macs=2.0)
    done = 0
    for part in (0.8, 0.65):
        found = segmenter.find(int(max(network.live) * part))
        if found is None:
            continue
        patched = carry_out(graph_module, network, found.regions, "write")
        record = record_graph(patched, (x,))
        assert profile_record(record, convention).peak_bytes == found.peak_bytes
        assert measure(patched, x) == profile_record(record, GRAPH).peak_bytes
        assert record.macs - network.macs == found.extra_macs
        assert_same(graph_module, patched, x)
        done += 1
    assert done or convention is GRAPH


def test_pieces_say_what_they_are_part_of() -> None:
    x = image(3, 1, 16)
    graph_module = trace(NETWORKS["wide middle"], x)
    network = PatchNetwork(graph_module, record_graph(graph_module, (x,)), DEPLOY)
    patched = carry_out(graph_module, network, [Region(1, 5, Form(2, 2))], "write")
    marks = [n.meta[TILE] for n in patched.graph.nodes if TILE in n.meta]
    assert {(m.tile, m.tiles) for m in marks} == {(t, 4) for t in range(4)}
    assert {m.origin for m in marks} == {s.node.name for s in network.steps[1:5]}
