from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.passes.infra.pass_base import PassBase
from torch.fx.passes.infra.pass_manager import PassManager

import redistill
from redistill.errors import PlanError, RedistillError
from redistill.models.red_block import REDBlock
from redistill.passes.attach_taps import AttachTapsPass, TapOrder
from redistill.passes.fold_batch_norm import FoldBatchNormPass
from redistill.passes.insert_pooling import InsertPoolingPass
from redistill.passes.orders import Restride
from redistill.passes.reorder import ReorderPass
from redistill.passes.strip_guards import StripGuardsPass
from redistill.tracing.canonicalize import CanonicalizePass, GlobalPoolPass
from redistill.tracing.meta import Meta
from redistill.tracing.skeleton import build_graph_module
from redistill.tracing.tracer import trace_graph


def graph_of(module, *inputs):
    graph, _, skeleton = trace_graph(module, inputs)
    return build_graph_module(module, graph, skeleton)


def targets(graph_module):
    return [str(n.target) for n in graph_module.graph.nodes if n.op == "call_module"]


def named(graph_module, name):
    return next(n for n in graph_module.graph.nodes if n.name == name)


@pytest.mark.parametrize(
    "kind", [CanonicalizePass, InsertPoolingPass, AttachTapsPass, FoldBatchNormPass, ReorderPass, StripGuardsPass]
)
def test_each_pass_is_a_pass_that_leaves_a_graph_with_nothing_to_do_alone(kind):
    graph_module = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    graph_module.eval()
    code = graph_module.code
    assert issubclass(kind, PassBase)
    result = PassManager([kind()])(graph_module)
    assert not result.modified
    assert result.graph_module.code == code


class Functional(nn.Module):
    def forward(self, x):
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = F.avg_pool2d(x, 2)
        x = F.dropout2d(x, 0.3, self.training)
        return F.adaptive_avg_pool2d(x, (1, 1))


def test_canonicalise_makes_modules_of_functions():
    module = Functional().eval()
    graph_module = graph_of(module, torch.randn(1, 3, 16, 16))
    assert CanonicalizePass()(graph_module).modified
    found = [graph_module.get_submodule(t) for t in targets(graph_module)]
    assert [type(m) for m in found] == [nn.MaxPool2d, nn.AvgPool2d, nn.Dropout2d, nn.AdaptiveAvgPool2d]
    assert (found[0].kernel_size, found[0].stride, found[0].padding) == (3, 2, 1)
    assert found[2].p == 0.3
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(graph_module(x), module(x))


def test_canonicalise_turns_a_pool_over_the_whole_map_into_a_global_pool():
    graph_module = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(8)), torch.randn(1, 3, 8, 8))
    GlobalPoolPass()(graph_module)
    assert isinstance(graph_module.get_submodule("1"), nn.AdaptiveAvgPool2d)
    kept = graph_of(nn.Sequential(nn.AvgPool2d(4)), torch.randn(1, 3, 8, 8))
    assert not GlobalPoolPass()(kept).modified


def restrided(module, side, stride, target, enlarge=1):
    graph_module = graph_of(module, torch.randn(1, 3, side, side))
    node = next(n for n in graph_module.graph.nodes if n.op == "call_module")
    node.meta[Meta.RESTRIDE] = Restride((Fraction(stride) / enlarge,) * 2, (target, target))
    InsertPoolingPass()(graph_module)
    graph_module.graph.lint()
    return graph_module, graph_module(torch.randn(2, 3, side, side))


@pytest.mark.parametrize(
    ("layer", "stride", "target"),
    [
        (nn.Conv2d(3, 4, 7, stride=2, padding=3), 8, 4),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 1, 32),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 4, 8),
        (nn.Conv2d(3, 4, 1, stride=2), 4, 8),
        (nn.Conv2d(3, 4, 2, stride=2), 1, 32),  # an even kernel at stride 1 needs a crop
        (nn.Conv2d(3, 4, 4, stride=4), 8, 4),
        (nn.Conv2d(3, 4, 3, stride=2), 1, 32),
        (nn.Conv2d(3, 4, 3, stride=2, dilation=2, padding=2), 4, 8),
        (nn.MaxPool2d(2), 4, 8),
        (nn.MaxPool2d(3, 2, 1), 1, 32),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 1, 32),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 4, 8),
        (nn.AvgPool2d(2), 8, 4),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 1, 32),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), 1, 32),
        (nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), Fraction(1, 4), 128),
    ],
)
def test_every_layer_reaches_the_side_wanted(layer, stride, target):
    _, output = restrided(nn.Sequential(layer), 32, stride, target)
    assert output.shape[-2:] == (target, target)


def test_a_pool_whose_windows_tile_its_input_goes_on_tiling_or_vanishes():
    grown, _ = restrided(nn.Sequential(nn.AvgPool2d(2)), 32, 4, 8)
    pool = grown.get_submodule("0")
    assert (pool.kernel_size, pool.stride) == ((4, 4), (4, 4))
    gone, output = restrided(nn.Sequential(nn.AvgPool2d(2)), 32, 1, 32)
    assert isinstance(gone.get_submodule("0"), nn.Identity)
    assert output.shape == (2, 3, 32, 32)


def test_a_tail_runs_at_the_small_grid_and_is_enlarged():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    graph_module, output = restrided(nn.Sequential(layer), 8, 1, 32, enlarge=4)
    assert output.shape == (2, 4, 32, 32)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(graph_module(x), F.interpolate(layer(x), scale_factor=4.0))


def test_weights_are_kept_and_the_teacher_is_untouched():
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    graph_module, _ = restrided(nn.Sequential(layer), 32, 4, 8)
    assert layer.stride == (2, 2)
    assert graph_module.get_submodule("0").weight is layer.weight


def test_a_module_called_twice_is_changed_only_where_asked():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x):
            return self.pool(self.pool(x))

    graph_module, output = restrided(Twice(), 32, 4, 8)
    assert output.shape[-1] == 4
    first, second = (graph_module.get_submodule(t) for t in targets(graph_module))
    assert (first.stride, second.stride) == ((4, 4), (2, 2))
    assert first.weight is second.weight


def test_interpolation_scales_follow_and_vanish_at_one():
    _, output = restrided(nn.Sequential(nn.Upsample(scale_factor=2)), 8, Fraction(1, 4), 32)
    assert output.shape[-1] == 32
    _, output = restrided(nn.Sequential(nn.Upsample(scale_factor=2)), 8, 1, 8)
    assert output.shape[-1] == 8


def test_no_padding_leads_there_is_said_so():
    with pytest.raises(PlanError, match=r"no padding lets Conv2d\(3, 4, kernel_size=\(1, 1\).* make a map of side 9"):
        restrided(nn.Sequential(nn.Conv2d(3, 4, 1)), 8, 1, 9)


def test_grids_that_no_longer_fit_together_are_named():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 3, 3, stride=2, padding=1)

        def forward(self, x):
            return self.down(x) + F.avg_pool2d(x, 2)

    with pytest.raises(PlanError, match="does not fit together at add"):
        restrided(Sum(), 32, 4, 8)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.one(x)
        return self.two(x) + x


def test_a_red_block_on_the_out_side_is_read_by_all():
    graph_module = graph_of(Chain(), torch.randn(1, 3, 8, 8))
    named(graph_module, "one").meta[Meta.TAPS] = (TapOrder("one_out", 4, "one", "out"),)
    assert AttachTapsPass()(graph_module).modified
    tapped = next(n for n in graph_module.graph.nodes if n.meta.get("tap") == "one_out")
    assert {user.name for user in tapped.users} == {"two", "add"}
    block = graph_module.get_submodule("red.one_out")
    module = Chain()
    module.load_state_dict({k: v for k, v in graph_module.state_dict().items() if not k.startswith("red.")})
    x = torch.randn(2, 3, 8, 8)
    y = block.eval()(module.one(x))
    assert torch.equal(graph_module.eval()(x), module.two(y) + y)


def test_a_red_block_on_the_in_side_is_read_inside_only():
    graph_module = graph_of(Chain(), torch.randn(1, 3, 8, 8))
    named(graph_module, "one").meta[Meta.TAPS] = (TapOrder("two_in", 4, "two", "in"),)
    AttachTapsPass()(graph_module)
    tapped = next(n for n in graph_module.graph.nodes if n.meta.get("tap") == "two_in")
    assert {user.name for user in tapped.users} == {"two"}
    assert named(graph_module, "add").args[1].name == "one"


def test_a_gentle_red_block_starts_near_the_identity_and_learns():
    torch.manual_seed(0)
    x = torch.randn(8, 16, 8, 8)
    gentle, default = REDBlock(16), REDBlock(16, init="default")
    assert (gentle(x) - x).norm() / x.norm() < 0.15
    assert (default(x) - x).norm() / x.norm() > 0.3
    gentle(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in gentle.named_parameters() if "conv.bias" not in n
    )


def test_a_red_block_is_the_papers_formula():
    block = REDBlock(4).eval()
    x = torch.randn(2, 4, 6, 6)
    gate = torch.sigmoid(block.gate_norm(F.conv2d(x, block.gate_conv.weight, block.gate_conv.bias)))
    residual = F.relu6(
        block.residual_norm(F.conv2d(x, block.residual_conv.weight, block.residual_conv.bias, padding=1))
    )
    torch.testing.assert_close(block(x), x * gate + residual)
    assert sum(p.numel() for p in block.parameters()) == 10 * 4**2 + 6 * 4


def test_a_light_red_block_has_one_gate_and_a_depthwise_residual():
    block = REDBlock(4, init="light").eval()
    x = torch.randn(2, 4, 6, 6)
    assert (block(x) - x).norm() / x.norm() < 0.15
    gate = torch.sigmoid(block.gate_norm(F.conv2d(x, block.gate_conv.weight, block.gate_conv.bias)))
    assert gate.shape == (2, 1, 6, 6)
    residual = F.conv2d(x, block.residual_conv.weight, block.residual_conv.bias, padding=1, groups=4)
    torch.testing.assert_close(block(x), x * gate + F.relu6(block.residual_norm(residual)))
    assert sum(p.numel() for p in block.parameters()) == 13 * 4 + 3


def test_batch_norms_fold_into_their_convolutions():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    graph_module = graph_of(module, torch.randn(1, 3, 8, 8))
    graph_module.eval()
    x = torch.randn(2, 3, 8, 8)
    expected = module(x)
    assert FoldBatchNormPass()(graph_module).modified
    assert targets(graph_module) == ["0", "2", "3"]
    torch.testing.assert_close(graph_module(x), expected)
    torch.testing.assert_close(module(x), expected)


def test_folding_needs_eval_mode():
    graph_module = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(1, 3, 8, 8))
    graph_module.train()
    with pytest.raises(RedistillError, match="eval mode only"):
        FoldBatchNormPass()(graph_module)


def test_guards_are_stripped():
    class Guarded(nn.Module):
        def forward(self, x):
            return F.relu(x) if x.shape[2] % 2 == 0 else x

    graph_module = graph_of(Guarded(), torch.randn(1, 3, 8, 8))
    before = len(graph_module.graph.nodes)
    assert StripGuardsPass()(graph_module).modified
    assert [n.name for n in graph_module.graph.nodes] == ["x", "relu", "output"]
    assert before > 3


class Decoder(nn.Module):
    """A stem, and a transposed convolution that returns to the grid of the image."""

    def __init__(self, last, functional=False):
        super().__init__()
        self.stem, self.last, self.functional = nn.Conv2d(3, 8, 3, 2, 1), last, functional

    def forward(self, x):
        y = self.stem(x).relu()
        if not self.functional:
            return self.last(y)
        given = self.last
        return F.conv_transpose2d(y, given.weight, given.bias, given.stride, given.padding, given.output_padding)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("geometry", [(2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0)])
def test_a_transposed_tail_enlarges_by_a_longer_kernel(geometry, functional):
    kernel, stride, padding, more = geometry
    last = nn.ConvTranspose2d(8, 2, kernel, stride, padding, more)
    network = Decoder(last, functional).eval()
    x = torch.randn(1, 3, 32, 32)
    student = redistill.transform(network, x, factors=[4], taps="none").eval()
    with torch.no_grad():
        stem = nn.Conv2d(3, 8, 3, 8, 1)
        stem.load_state_dict(network.stem.state_dict())
        expected = F.interpolate(last(stem(x).relu()), scale_factor=4)
        assert torch.allclose(student(x)[..., 8:24, 8:24], expected[..., 8:24, 8:24], atol=1e-6)
    if not functional:  # whose longer weights are made as it runs
        assert student.plan.peak_bytes == 4 * (3 * 32 * 32 + 8 * 4 * 4)


def test_a_pixel_shuffle_at_the_tail_is_part_of_the_plan():
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(64, 8, 1)
    ).eval()
    student = redistill.transform(network, torch.randn(1, 3, 32, 32), "2x", taps="none")
    assert student.plan.certificate.excluded == 0


class Overwrites(nn.Module):
    """What a pool or an interpolation yields is written over, and what it read is read again."""

    def __init__(self, stride, between, back):
        super().__init__()
        self.a, self.between, self.act = nn.Conv2d(3, 8, 3, stride, 1), between, nn.ReLU(inplace=True)
        self.b, self.back, self.tail = nn.Conv2d(8, 8, 3, padding=1), back, nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x):
        a = self.a(x)
        return self.tail(torch.cat([a, self.back(self.b(self.act(self.between(a))))], 1))


@pytest.mark.parametrize(
    ("stride", "between", "back", "factors"),
    [
        (1, nn.MaxPool2d(2), nn.Upsample(scale_factor=2), (2, 1)),
        (2, nn.Upsample(scale_factor=2), nn.MaxPool2d(2), (1, 2)),
    ],
)
def test_what_is_left_out_keeps_apart_what_is_written_over(stride, between, back, factors):
    torch.manual_seed(0)
    module, x = Overwrites(stride, between, back).eval(), torch.randn(1, 3, 32, 32)
    student = redistill.transform(module, x, factors=factors, taps="none").eval()
    a = student.get_submodule("a")(x)
    wanted = torch.cat([a, student.get_submodule("b")(a.relu())], 1)
    torch.testing.assert_close(student.tapped({"cat": "cat"})(x)[1]["cat"], wanted)


def test_a_tap_may_lie_at_an_interpolation_that_is_left_out():
    back = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1))
    down = nn.Conv2d(16, 32, 3, 2, 1)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), down, nn.Upsample(scale_factor=2), back).eval()
    x = torch.randn(1, 3, 32, 32)
    student = redistill.transform(module, x, factors=(2, 1, 2), taps=[("2 out", "1 out")]).eval()
    output, maps = student.tapped()(x)
    assert [tuple(value.shape) for value in maps.values()] == [(1, 32, 16, 16)]
    assert output.shape == module(x).shape
    assert all(n.users or n.op == "output" for n in student.graph.nodes)
