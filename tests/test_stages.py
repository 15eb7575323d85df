from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import redistill
from redistill.models import DDPMUNet, load_model
from redistill.planning.partition import find_stages
from redistill.tracing.capture import capture


def stages_of(module, *shapes):
    inputs = tuple(torch.zeros(shape) for shape in shapes)
    return find_stages(capture(module, inputs).graph_module, inputs)


def test_resnet18_has_five_stages_between_input_and_head():
    stages = stages_of(torchvision.models.resnet18(weights=None), (1, 3, 64, 64))
    assert [s.name for s in stages.free] == ["conv1", "maxpool", "layer2.0", "layer3.0", "layer4.0"]
    assert [s.grid for s in stages.free] == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    assert [(t.node, t.kind, t.stride) for t in stages.transitions][:3] == [
        ("conv1", "stem", Fraction(2)),
        ("maxpool", "down", Fraction(2)),
        ("layer2_0_conv1", "down", Fraction(2)),
    ]
    assert [s.output for s in stages.free] == ["relu", *(f"layer{i}_1_relu_1" for i in (1, 2, 3, 4))]
    assert stages.free[1].pre_activation == "layer1_1_iadd" or stages.free[1].pre_activation.startswith("iadd")


def test_a_stem_of_stride_one_is_a_transition_too():
    stages = stages_of(load_model("redistill:mobilenet_v2_strided?strides=[1,1,2,2,2,1,2,1]", "random"), (1, 3, 64, 64))
    assert [s.grid[0] for s in stages.free] == [64, 32, 16, 8, 4]
    assert stages.transitions[0].kind == "stem"
    assert stages.transitions[0].stride == 1


def test_skips_tie_the_levels_of_a_unet_and_the_tail_is_a_transition():
    unet = DDPMUNet(width=8, multipliers=(1, 2), attention_levels=(), blocks=1)
    inputs = (torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long))
    stages = find_stages(capture(unet, inputs).graph_module, inputs)
    assert [s.grid for s in stages.free] == [(16, 16), (8, 8)]
    assert [t.kind for t in stages.transitions] == ["stem", "down", "up", "tail"]
    assert [t.stride for t in stages.transitions] == [1, 2, Fraction(1, 2), 1]
    assert stages.stages[-1].fixed == "it is an output"


def test_attention_scores_scale_with_the_square_of_the_area():
    unet = DDPMUNet(width=8, multipliers=(1, 2), attention_levels=(1,), blocks=1)
    inputs = (torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long))
    stages = find_stages(capture(unet, inputs).graph_module, inputs)
    growth = {
        o.macs and round(g.macs / o.macs)
        for o, g in zip(stages.record.operations, stages.grown.operations, strict=True)
    }
    assert growth == {0, 1, 4, 16}


def test_a_flatten_of_fixed_length_fixes_its_stage():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.second = nn.Conv2d(4, 4, 3, stride=2, padding=1)
            self.head = nn.Linear(4 * 4 * 4, 10)

        def forward(self, x):
            return self.head(self.second(self.first(x)).flatten(1))

    stages = stages_of(Fixed(), (1, 3, 16, 16))
    assert [s.fixed for s in stages.free] == [None, "head (head) needs this very size"]


class Picks(nn.Module):
    """Every second row, and some positions, picked by numbers; or the best ones, which are where the map has them."""

    def __init__(self, pick):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.register_buffer("rows", torch.arange(0, 16, 2))
        self.pick = pick

    def forward(self, x):
        return self.pick(self.b(self.a(x)), self.rows).mean(2)


@pytest.mark.parametrize(
    "pick", [lambda y, rows: y[:, :, rows].flatten(2), lambda y, rows: y.index_select(2, rows).flatten(2),
             lambda y, rows: y.flatten(2).gather(2, rows.expand(y.shape[0], 16, -1))],
)  # fmt: skip
def test_what_is_picked_by_constant_places_keeps_its_grid(pick):
    stages = stages_of(Picks(pick), (1, 3, 64, 64)).stages
    assert "picks places by number" in stages[2].fixed
    assert stages[1].fixed is None


def test_what_is_picked_by_value_does_not_fix_its_grid():
    best = Picks(
        lambda y, _: (t := y.flatten(2)).gather(2, t.sum(1, keepdim=True).topk(8, 2).indices.expand(-1, 16, -1))
    )
    assert all(s.fixed is None for s in stages_of(best, (1, 3, 64, 64)).free)


def test_interpolation_to_the_size_of_another_map_shares_its_stage():
    class Fuse(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.coarse = nn.Conv2d(4, 4, 3, stride=2, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            fine = self.fine(x)
            coarse = F.interpolate(self.coarse(fine), size=fine.shape[-2:], mode="bilinear")
            return self.head((fine + coarse).mean((2, 3)))

    stages = stages_of(Fuse(), (1, 3, 32, 32))
    resize = stages.transitions[-1]
    assert (resize.operator, resize.source, resize.target) == ("resize", 2, 1)
    assert all(resize.is_legal(a, b) for a in (1, 2, 4) for b in (1, 2, 4))


def test_only_strides_that_operations_can_take_are_legal():
    stages = stages_of(torchvision.models.resnet18(weights=None), (1, 3, 64, 64))
    down = stages.transitions[1]  # stride 2
    assert down.is_legal(2, 1)
    assert down.is_legal(1, 4)
    assert not down.is_legal(4, 1)


def test_the_stage_graph_is_a_networkx_graph():
    graph = stages_of(torchvision.models.resnet18(weights=None), (1, 3, 64, 64)).as_networkx()
    assert graph.number_of_nodes() == 6
    assert graph.number_of_edges() == 8
    assert graph.nodes[1]["stage"].name == "conv1"


class AfterAFixedGrid(nn.Module):
    """A position embedding, a table of biases and a view by constants fix one grid; the decoder behind it is free."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
        self.places, self.biases = nn.Parameter(torch.randn(1, 64, 8)), nn.Parameter(torch.randn(64, 64))
        self.up, self.refine = nn.ConvTranspose2d(8, 32, 4, 4), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 1, 1)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        tokens = (tokens @ tokens.transpose(1, 2) + self.biases).softmax(-1) @ self.mix(tokens)
        return self.last(self.refine(self.up(tokens.transpose(1, 2).reshape(len(x), 8, 8, 8))).relu())


def test_behind_a_fixed_grid_grids_are_free_again():
    x = torch.randn(1, 3, 32, 32)
    network = AfterAFixedGrid().eval()
    stages = stages_of(network, x.shape)
    fixed, free = stages.free
    assert "add" in fixed.fixed
    assert (free.grid, free.fixed) == ((32, 32), None)
    student = redistill.transform(network, x, "2x", taps="none")
    assert student.plan.factors == (1, 2)
    assert student(x).shape == (1, 1, 32, 32)


class SizesBefore(nn.Module):
    """Each map is laid out by the sizes of the one before it, halved."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in ((3, 32), (32, 16), (16, 16)))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        for step in self.steps:
            batch, (height, width) = x.shape[0], x.shape[2:]
            tokens = step(x).flatten(2).transpose(1, 2).relu()
            x = tokens.reshape(batch, height // 2, width // 2, -1).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def test_a_layout_by_the_sizes_of_another_stage_does_not_tie_them():
    x = torch.randn(1, 3, 32, 32)
    student = redistill.transform(SizesBefore().eval(), x, "2x", taps="none")
    assert student.plan.factors == (2, 1, 1)
    assert student(torch.randn(2, 3, 64, 48)).shape == (2, 2)


class ConstantSizes(nn.Module):
    """Maps of several grids brought to one of constant size, a global context among them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.context, self.up = nn.AdaptiveAvgPool2d(2), nn.Upsample((8, 8))
        self.head = nn.Linear(48, 2)

    def forward(self, x):
        fine = self.first(x).relu()
        coarse = self.second(fine).relu()
        brought = F.interpolate(fine, size=(8, 8), mode="bilinear")
        return self.head(torch.cat((coarse, brought, self.up(self.context(coarse))), 1).mean((2, 3)))


def test_a_constant_size_is_scaled_with_the_grid_that_it_is_brought_to():
    x = torch.randn(1, 3, 32, 32)
    network = ConstantSizes().eval()
    assert [stage.fixed for stage in stages_of(network, x.shape).free] == [None, None]
    student = redistill.transform(network, x, factors=[2, 2], taps="none")
    assert student.get_submodule("up").size == (4, 4)
    assert student(x).shape == (1, 2)


class ImageAgain(nn.Module):
    """The image joins maps twice, and once more what a tail gives back at its size."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(15, 12, 3, padding=1)
        self.tail = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x):
        y = self.stem(x).relu() + x.repeat(1, 4, 1, 1)
        return x + self.tail(self.body(torch.cat((x, y), 1)).relu())


def test_an_image_that_joins_maps_is_pooled_to_their_grid():
    x = torch.randn(1, 3, 32, 32)
    network = ImageAgain().eval()
    student = redistill.transform(network, x, "1.5x", taps="none")
    assert len(student.plan.factors) == 1
    assert student(x).shape == x.shape
    unpooled = redistill.transform(network, x, factors=[1], taps="none")
    assert torch.allclose(unpooled(x), network(x), atol=1e-6)
    assert not any(isinstance(part, nn.AvgPool2d) for part in unpooled.modules())
