"""Grids of one to three axes, strides for each axis, and layouts other than (B, C, H, W)."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import redistill
from redistill.compiler.analysis import analyze
from redistill.planning.objectives import keep_most_macs
from redistill.planning.partition import find_stages
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import solve
from redistill.tracing.capture import capture


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def layer(cin, cout, stride=2, conv=nn.Conv2d, norm=nn.BatchNorm2d):
    return nn.Sequential(conv(cin, cout, 3, stride, 1, bias=False), norm(cout), nn.ReLU())


def body(cin=3):
    return nn.Sequential(layer(cin, 16), layer(16, 32), layer(32, 48))


def head(channels=48):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def stages_of(module, x):
    return find_stages(capture(module.eval(), (x,)).graph_module, (x,))


def student_of(module, x, budget="2x", **options):
    torch.manual_seed(0)
    student = redistill.transform(module.eval(), x, budget, **options).eval()
    with torch.no_grad():
        assert student(x).shape == module(x).shape
    return student


def cells_seen(module, x, axis):
    """The first and last index of the input's axis that the output depends on."""
    x = x.clone().requires_grad_()
    module.eval()(x).sum().backward()
    others = tuple(a for a in range(x.dim()) if a != axis)
    seen = (x.grad.abs().sum(others) > 0).nonzero()
    return int(seen.min()), int(seen.max())


@pytest.mark.parametrize("stride", [(2, 1), (4, 1), (1, 2), (1, 4)])
def test_each_axis_keeps_its_own_stride_and_all_rows_and_columns_are_seen(stride):
    module = nn.Sequential(layer(1, 32, stride), layer(32, 48), layer(48, 48), head())
    x = torch.randn(1, 1, 64, 96)
    student = student_of(module, x, taps="none")
    stem = student.get_submodule("0.0")
    factor = student.plan.factors[0]
    assert stem.stride == (stride[0] * factor, stride[1] * factor)
    with torch.no_grad():
        assert tuple(stem(x).shape[-2:]) == student.stages[1].student_grid(factor)
    for axis in (2, 3):
        reach = stem.stride[axis - 2]
        first, last = cells_seen(student, x, axis)
        assert first < reach
        assert last >= x.shape[axis] - reach


def test_grids_of_one_and_three_axes_are_pooled_and_tapped():
    sound = nn.Sequential(
        *(layer(i, o, 4, nn.Conv1d, nn.BatchNorm1d) for i, o in ((1, 32), (32, 48), (48, 64))),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    student = student_of(sound, torch.randn(1, 1, 2048), "1.7x", taps="auto")
    assert [s.grid for s in student.stages[1:4]] == [(512,), (128,), (32,)]
    taps = student.tapped()(torch.randn(1, 1, 2048))[1]
    assert len(taps) == len(student.taps) > 0
    assert all(taps[t.name].shape[1:] == (t.channels, *t.grid) for t in student.taps)
    volume = nn.Sequential(
        *(layer(i, o, 2, nn.Conv3d, nn.BatchNorm3d) for i, o in ((1, 16), (16, 24), (24, 32))),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    student = student_of(volume, torch.randn(1, 1, 16, 32, 32))
    assert student.stages[1].grid == (8, 16, 16)
    assert student.plan.peak_bytes == redistill.profile(student, torch.randn(1, 1, 16, 32, 32)).peak_bytes


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.permute(0, 3, 1, 2), (1, 64, 96, 3)),
        (lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1), (1, 64, 96)),
        (lambda x: x.flatten(0, 1), (1, 2, 3, 64, 96)),
    ],
    ids=["channels last", "no channels", "frames"],
)
def test_which_axes_are_spatial_is_seen_by_growth(function, shape):
    module = nn.Sequential(Call(function), body(), head())
    stages = stages_of(module, torch.randn(shape))
    assert [s.grid for s in stages.free] == [(32, 48), (16, 24), (8, 12)]
    assert student_of(module, torch.randn(shape)).plan.factors[0] > 1


TOGETHER = {
    "an image and its mask": (lambda x, m: x * m[:, None], (torch.randn(1, 3, 64, 96), torch.ones(1, 64, 96))),
    "unbatched images": (lambda *given: torch.stack(given), (torch.randn(3, 64, 64), torch.randn(3, 64, 64))),
    "channels last": (
        lambda a, b: torch.cat([a, b], -1).permute(0, 3, 1, 2),
        (torch.randn(1, 64, 96, 2), torch.randn(1, 64, 96, 1)),
    ),
}


class Joined(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.join, self.rest = join, nn.Sequential(body(), head())

    def forward(self, *given):
        return self.rest(self.join(*given))


@pytest.mark.parametrize("name", TOGETHER)
def test_inputs_that_must_grow_together_do(name):
    join, given = TOGETHER[name]
    student = redistill.transform(Joined(join).eval(), given, factors=(2, 1, 1))
    assert student.plan.macs_kept < 1
    assert len(student.stages[1].grid) == 2
    assert student(*given).shape == Joined(join)(*given).shape


def test_maps_with_channels_last_inside_are_tapped_only_where_channels_come_first():
    class Stage(nn.Module):
        def __init__(self, cin, cout):
            super().__init__()
            self.down = nn.Conv2d(cin, cout, 2, 2)
            self.mix = nn.Sequential(nn.LayerNorm(cout), nn.Linear(cout, cout), nn.GELU())

        def forward(self, x):
            x = self.down(x).permute(0, 2, 3, 1)
            return (x + self.mix(x)).permute(0, 3, 1, 2)

    module = nn.Sequential(Stage(3, 16), Stage(16, 32), Stage(32, 48), head())
    x = torch.randn(1, 3, 64, 96)
    student = student_of(module, x, taps="auto")
    assert student.taps
    ours, theirs = student.tapped()(x)[1], student.teacher_tapped(module)(x)[1]
    for tap in student.taps:
        assert ours[tap.name].shape[1:] == (tap.channels, *tap.grid)
        assert theirs[tap.name].shape[2:] == tap.grid


def test_a_grid_axis_of_one_cell_stays_one():
    module = nn.Sequential(layer(1, 32, (1, 2)), layer(32, 48), layer(48, 48), head())
    student = student_of(module, torch.randn(1, 1, 1, 256))
    assert student.stages[1].grid == (1, 128)
    assert student.stages[1].student_grid(4) == (1, 32)


class SpaceToDepth(nn.Module):
    """By view and permute, as it is written by hand."""

    def forward(self, x):
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def focus(x):
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@pytest.mark.parametrize("stem", [SpaceToDepth(), Call(focus), nn.PixelUnshuffle(2)], ids=["view", "focus", "module"])
def test_what_rearranges_the_image_is_followed_by_a_stem(stem):
    module = nn.Sequential(stem, layer(12, 16, 1), layer(16, 32), layer(32, 48), head())
    stages = stages_of(module, torch.randn(1, 3, 64, 64))
    assert stages.transitions[0].kind == "stem"
    assert [s.grid for s in stages.free] == [(32, 32), (16, 16), (8, 8)]
    assert student_of(module, torch.randn(1, 3, 64, 64), factors=(2, 1, 1)).plan.macs_kept < 1


class Shortcut(nn.Module):
    """A residual block whose shortcut has no parameters: every other pixel, and channels of zeros."""

    def __init__(self, cin, cout):
        super().__init__()
        self.conv, self.extra = nn.Conv2d(cin, cout, 3, 2, 1), cout - cin

    def forward(self, x):
        return F.relu(self.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra)))


def test_a_strided_slice_is_a_transition_and_takes_new_steps():
    module = nn.Sequential(layer(3, 32, 1), Shortcut(32, 48), Shortcut(48, 48), head())
    student = student_of(module, torch.randn(1, 3, 32, 32), taps="auto")
    assert [s.grid[0] for s in student.stages] == [32, 32, 16, 8]
    assert student.plan.factors[-1] == 1
    assert len(student.taps) > 0


class Functional(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(o, i, 3, 3) / 9) for i, o in ((3, 32), (32, 48)))
        self.pool, self.head = pool, head()

    def forward(self, x):
        first, second = self.weights
        x = self.pool(F.conv2d(x, first, padding=1).relu())
        return self.head(self.pool(F.conv2d(x, second - second.mean(), None, 1, 1).relu()))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, (2, 2)),
        lambda x: F.lp_pool2d(x, 2, 2),
        lambda x: F.interpolate(x, scale_factor=0.5),
        lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)),
        lambda x: x[..., ::2, ::2],
    ],
    ids=["max", "average", "lp", "interpolate", "adaptive", "slice"],
)
def test_functions_move_between_grids_as_modules_do(pool):
    module = Functional(pool)
    student = student_of(module, torch.randn(1, 3, 64, 64), "1.5x", taps="none")
    assert [s.grid[0] for s in student.stages] == [64, 64, 32, 16]
    assert student.plan.factors[0] > student.plan.factors[-1] == 1
    assert {k for k in student.state_dict() if k.startswith("weights")} == {"weights.0", "weights.1"}


class OwnLayer(nn.Module):
    """A layer that is no ``nn.Conv2d``, its weight standardised."""

    def __init__(self, cin, cout, stride=2):
        super().__init__()
        self.weight, self.stride = nn.Parameter(torch.randn(cout, cin, 3, 3)), stride

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), None, self.stride, 1)


class OwnNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.gain / x.square().mean(1, keepdim=True).add(1e-6).sqrt()


class Clipped(OwnLayer):
    def forward(self, x):
        self.weight.data = self.weight.data.clamp(-1, 1)
        return super().forward(x)


def test_a_layer_of_ones_own_is_entered_where_it_slides_over_a_grid():
    x = torch.randn(1, 3, 64, 64)

    def network(kind):
        return nn.Sequential(
            kind(3, 16, **keywords(kind)), nn.ReLU(), OwnNorm(16), kind(16, 32, **keywords(kind)), head(32)
        )

    def keywords(kind):
        return {"kernel_size": 3, "stride": 2, "padding": 1} if kind is nn.Conv2d else {}

    ours, plain = (redistill.transform(network(kind).eval(), x, "1.5x") for kind in (OwnLayer, nn.Conv2d))
    assert ours.plan.factors == plain.plan.factors
    assert [str(tap) for tap in ours.taps] == [str(tap) for tap in plain.taps]
    assert [
        n.target for n in ours.graph.nodes if n.op == "call_module" and "2" in str(n.target)
    ]  # the norm is one node


def test_a_layer_of_ones_own_that_cannot_be_entered_stays_one_node_with_the_reason():
    captured = capture(nn.Sequential(Clipped(3, 16), head(16)), torch.randn(1, 3, 64, 64))
    assert any(note.startswith("0 stays one node: the forward overwrites a weight") for note in captured.notes)


def test_padding_by_name_becomes_numbers_where_a_stride_comes():
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 48, 3, padding="same"), head()
    )
    student = student_of(module, torch.randn(1, 3, 64, 64), taps="none")
    assert student.get_submodule("0").stride == (2, 2)


class SamePool(nn.AvgPool2d):
    """Pads by itself, from its stride and the size that comes."""

    def forward(self, x):
        kernel, stride = (v if isinstance(v, tuple) else (v, v) for v in (self.kernel_size, self.stride))
        down, right = (
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[-2:], stride, kernel, strict=True)
        )
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.avg_pool2d(x, kernel, stride, self.padding)


def test_a_pool_that_pads_by_itself_is_not_padded_twice():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.pool = layer(3, 32), nn.Conv2d(32, 32, 5, 2, 2), SamePool(3, 2)
            self.rest = nn.Sequential(layer(32, 48), head())

        def forward(self, x):
            x = self.stem(x)
            return self.rest(self.a(x) + self.pool(x))

    assert student_of(Cell(), torch.randn(1, 3, 64, 64), factors=(2, 1, 1)).plan.factors == (2, 1, 1)


class Dense(nn.Module):
    """Two levels with a skip, and an end."""

    def __init__(self, end):
        super().__init__()
        self.fine, self.coarse, self.join = layer(3, 16, 1), layer(16, 32), layer(48, 16, 1)
        self.last, self.end = nn.Conv2d(16, 4, 1), end

    def forward(self, x):
        fine = self.fine(x)
        joined = self.join(torch.cat([fine, F.interpolate(self.coarse(fine), size=fine.shape[2:])], 1))
        return self.end(self.last(joined), x)


@pytest.mark.parametrize(
    "end",
    [
        lambda y, x: torch.as_tensor(y).contiguous().float(),
        lambda y, x: y.sigmoid() * 10 + 1,
        lambda y, x: y.softmax(1),
        lambda y, x: F.normalize(y, dim=1),
        lambda y, x: y.argmax(1),
        lambda y, x: y[:, 0],
        lambda y, x: y.unflatten(1, (2, 2)),
        lambda y, x: torch.cat(y.chunk(2, 1), 1),
        lambda y, x: F.pixel_shuffle(y, 2),
        lambda y, x: x - y[:, :3],
        lambda y, x: F.interpolate(y, size=x.shape[2:], mode="bilinear"),
        lambda y, x: F.interpolate(x, scale_factor=2)[:, :1] + F.pixel_shuffle(y, 2),
    ],
    ids=[
        *("casts", "arithmetic", "softmax", "normalize", "argmax", "channel"),
        *("view", "chunks", "shuffle", "residual", "resize", "upscaled"),
    ],
)
def test_dense_outputs_may_end_in_what_they_end_in(end):
    class End(nn.Module):
        def forward(self, y, x):
            return end(y, x)

    student = student_of(Dense(End()), torch.randn(1, 3, 64, 64), factors=(2, 1), taps="none")
    assert student.plan.macs_kept < 0.6


def test_heads_keep_their_grids_while_the_backbone_is_pooled():
    class Detector(nn.Module):
        """Two heads on two levels, decoded to (B, cells, 4) with the cells' own centres."""

        def __init__(self):
            super().__init__()
            self.stem, self.fine, self.coarse = layer(3, 16), layer(16, 32), layer(32, 48)
            self.boxes = nn.ModuleList([nn.Conv2d(32, 2, 1), nn.Conv2d(48, 2, 1)])
            self.scores = nn.ModuleList([nn.Conv2d(32, 2, 1), nn.Conv2d(48, 2, 1)])

        def decode(self, x, index):
            y = torch.cat([self.boxes[index](x), self.scores[index](x)], 1)
            rows = torch.arange(y.shape[2]).view(1, -1, 1) + torch.zeros(1, 1, y.shape[3])
            return torch.cat([y[:, :1] + rows, y[:, 1:]], 1).flatten(2).transpose(1, 2)

        def forward(self, x):
            fine = self.fine(self.stem(x))
            return torch.cat([self.decode(fine, 0), self.decode(self.coarse(fine), 1)], 1)

    module = Detector()
    student = student_of(module, torch.randn(1, 3, 64, 64), "2x", taps="none")
    assert student.plan.factors[0] > 1
    assert student(torch.randn(1, 3, 64, 64)).shape == (1, 16 * 16 + 8 * 8, 4)


class AnchorDetector(nn.Module):
    """Heads on two levels, decoded by an expectation over bins, and by anchors made of the sizes of what they read.

    The anchors are kept, and made anew when another size comes.
    """

    seen = None

    def __init__(self):
        super().__init__()
        self.stem, self.fine, self.coarse = layer(3, 16), layer(16, 32), layer(32, 48)
        self.heads = nn.ModuleList([nn.Conv2d(32, 8, 1), nn.Conv2d(48, 8, 1)])
        self.bins = nn.Conv2d(4, 1, 1, bias=False)

    def forward(self, x):
        fine = self.fine(self.stem(x))
        maps = [fine, self.coarse(fine)]
        found = torch.cat([head(m).view(m.shape[0], 8, -1) for head, m in zip(self.heads, maps, strict=True)], -1)
        if self.seen != fine.shape:
            self.seen, (self.anchors, self.strides) = fine.shape, self.lay_out(maps)
        boxes = self.bins(found.view(x.shape[0], 2, 4, -1).transpose(1, 2).softmax(1)).squeeze(1)
        return (self.anchors + boxes) * self.strides

    def lay_out(self, maps):
        anchors, strides = [], []
        for stride, m in zip((4.0, 8.0), maps, strict=True):
            h, w = m.shape[2:]
            rows, columns = torch.meshgrid(torch.arange(h).type_as(m), torch.arange(w).type_as(m), indexing="ij")
            anchors.append(torch.stack((columns, rows)).view(2, -1) + 0.5)
            strides.append(m.new_full((1, h * w), stride))
        return torch.cat(anchors, 1), torch.cat(strides, 1)


@pytest.mark.parametrize("side", [64, 72])
def test_a_decode_by_the_sizes_of_pooled_maps_stays_right(side):
    torch.manual_seed(0)
    module, image = AnchorDetector().eval(), torch.randn(1, 3, side, side)
    student = redistill.transform(module, image, factors=(2, 2, 2), taps="none").eval()
    assert student(image).shape == module(image).shape == (1, 2, (side // 4) ** 2 + (side // 8) ** 2)
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *student.named_parameters()):
            if name.startswith("heads"):
                value.zero_()
    assert torch.equal(student(image), module(image))  # what is left are the anchors


def test_a_teacher_that_has_been_used_makes_the_same_student_and_loads_it(tmp_path):
    torch.manual_seed(0)
    fresh, image = AnchorDetector().eval(), torch.randn(1, 3, 64, 64)
    used = copy.deepcopy(fresh)
    with torch.no_grad():
        used(image)
    anchors = used.anchors
    students = [redistill.transform(t, image, factors=(2, 2, 2), taps="none").eval() for t in (fresh, used)]
    assert torch.equal(students[0](image), students[1](image))
    loaded = redistill.load_student(students[0].save(tmp_path / "student"), used).eval()
    assert torch.equal(loaded(image), students[0](image))
    assert used.anchors is anchors


def test_a_map_of_features_is_enlarged_by_repetition_and_keeps_its_weights():
    module = nn.Sequential(layer(3, 32), nn.Conv2d(32, 32, 3, padding=1)).eval()
    student = redistill.transform(module, torch.randn(1, 3, 40, 40), factors=(3,), taps="none").eval()
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in module.parameters())
    found = student(torch.randn(1, 3, 40, 40))
    assert found.shape == (1, 32, 20, 20)
    assert torch.equal(found[..., 0::3, :-1:3], found[..., 0::3, 1::3])
    picture = redistill.transform(
        nn.Sequential(layer(3, 32), nn.Conv2d(32, 3, 1)), torch.randn(1, 3, 40, 40), factors=(2,), taps="none"
    )
    assert picture.get_submodule("1").out_channels == 12


def test_odd_sides_are_met_by_cropping_what_the_tail_enlarged():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1)
            self.c, self.d = nn.Conv2d(48, 16, 3, 1, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x):
            a = self.a(x).relu()
            b = F.interpolate(self.b(F.max_pool2d(a, 2)).relu(), scale_factor=2)
            down, right = a.size(2) - b.size(2), a.size(3) - b.size(3)
            return self.d(self.c(torch.cat([a, F.pad(b, (0, right, 0, down))], 1)).relu())

    student = student_of(UNet(), torch.randn(1, 3, 49, 67), taps="none")
    assert student.plan.factors == (2, 1)


def test_maps_resized_to_a_part_of_the_images_size_are_not_tied_to_the_image():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.mix, self.out = layer(3, 32, 4), layer(32, 64), layer(96, 32, 1), nn.Conv2d(32, 2, 1)

        def forward(self, x):
            a = self.a(x)
            size = (x.shape[2] // 4, x.shape[3] // 4)
            maps = [F.interpolate(v, size=size, mode="bilinear") for v in (a, self.b(a))]
            return F.interpolate(self.out(self.mix(torch.cat(maps, 1))), scale_factor=4)

    student = student_of(Pyramid(), torch.randn(1, 3, 64, 64), taps="none")
    assert max(student.plan.factors) > 1
    assert max(student_of(Pyramid(), torch.randn(1, 3, 128, 128)).plan.factors) > 1


def test_nothing_as_long_as_a_stride_is_lost():
    class Cropping(nn.Module):
        """A sum ties a strided convolution to a map that it makes smaller by slicing."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = layer(3, 16), layer(16, 48, 1), head()

        def forward(self, x):
            y = self.a(x)
            return self.head(self.b(y)[..., : y.shape[2] // 2, :])

    module, x = Cropping(), torch.randn(1, 3, 64, 64)
    student = student_of(module, x, taps="none")
    assert cells_seen(student, x, 2)[1] >= cells_seen(module, x, 2)[1] - 4


class Restorer(nn.Module):
    """All on one grid but for a level below it, and the image added at the end."""

    def __init__(self):
        super().__init__()
        self.first, self.down, self.up = layer(3, 16, 1), layer(16, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return x + self.last(y + self.up(self.down(y)))


def test_factors_between_powers_of_two_are_offered_where_they_divide_and_lead_on():
    at_60, at_64 = (stages_of(Restorer(), torch.randn(1, 3, side, side)) for side in (60, 64))
    assert candidate_factors(at_60, restore_deepest=False) == (
        (1,),
        (1, 2, 3, 4, 5, 6, 8, 16),
        (1, 2, 3, 4, 5, 6, 8, 16),
    )
    assert candidate_factors(at_64, restore_deepest=False) == ((1,), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16))
    classifier = stages_of(nn.Sequential(body(), head()), torch.randn(1, 3, 96, 96))
    assert all(3 not in choices for choices in candidate_factors(classifier))  # no stride leads from 3 back to 1


@pytest.mark.parametrize(("factors", "side"), [((3, 3), 60), ((5, 5), 60), ((6, 3), 60), ((3, 3), 90)])
def test_a_student_has_factors_between_powers_of_two(factors, side):
    module, x = Restorer(), torch.randn(1, 3, side, side)
    student = student_of(module, x, factors=factors)
    assert student.plan.factors == factors
    assert student.plan.peak_bytes == redistill.profile(student, x).peak_bytes
    assert cells_seen(student, x, 2) == (0, side - 1)


def test_the_best_plan_with_factors_between_is_that_of_exhaustive_search():
    analysis = analyze(Restorer().eval(), (torch.randn(1, 3, 60, 60),))
    scaling = ScalingModel(analysis.stages, analysis.convention, candidate_factors(analysis.stages, False))
    problem = scaling.problem(analysis.crossings)
    peaks = {plan: problem.peak(plan) for plan in problem.enumerate()}
    for limit in sorted(set(peaks.values())):
        best = max(problem.total_macs(plan) for plan, peak in peaks.items() if peak <= limit)
        assert problem.total_macs(solve(problem, limit, keep_most_macs()).plan) == best
    forbidden = frozenset({((1, 1), (2, 0))})
    assert all(plan[1:] != (1, 0) for plan in replace(problem, forbidden=forbidden).enumerate())


def test_calls_of_one_module_share_their_factors_and_a_note_says_so():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, a, b):
            return (self.net(a) - self.net(b)).pow(2).sum(1)

    x = torch.randn(1, 3, 64, 64)
    student = redistill.transform(Siamese().eval(), (x, x.clone()), "1.5x", taps="none").eval()
    assert student(x, x).item() == 0
    assert any("called at several places, with one factor for all" in note for note in student.provenance.notes)


class BuiltForASize(nn.Conv2d):
    """Pads by itself, by what its stride and the size it was built for ask, whatever comes."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, side: int) -> None:
        super().__init__(before, after, kernel, stride)
        lacking = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        self.pad = nn.ZeroPad2d((lacking // 2, lacking - lacking // 2) * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding)


def test_a_convolution_padded_for_one_size_is_padded_further_where_its_stride_falls() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        BuiltForASize(3, 32, 3, 2, 32), nn.ReLU(), BuiltForASize(32, 16, 3, 2, 16), nn.ReLU(),
        BuiltForASize(16, 8, 5, 1, 8), nn.AdaptiveAvgPool2d(1),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    student = redistill.transform(teacher, x, factors=(2, 1), taps="none").eval()
    with torch.no_grad():
        first = F.conv2d(teacher[0].pad(x), teacher[0].weight, teacher[0].bias, 4).relu()
        second = F.conv2d(first, teacher[2].weight, teacher[2].bias, 1, 1).relu()
        torch.testing.assert_close(student(x), teacher[5](teacher[4](second)))


def test_maps_laid_out_by_sizes_of_the_image_follow_their_own_stage():
    class Hybrid(nn.Module):
        """Sequences of pixels in between, laid out again by sizes computed of the image's."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.mix, self.head = layer(3, 32, 4), layer(32, 48), nn.Linear(32, 32), head()

        def forward(self, x):
            h, w = x.shape[2] // 4, x.shape[3] // 4
            y = self.mix(self.a(x).flatten(2).transpose(1, 2))
            y = y.transpose(1, 2).reshape(x.shape[0], -1, h * w).view(x.shape[0], -1, h, w)
            return self.head(self.b(y))

    module, x = Hybrid(), torch.randn(1, 3, 64, 96)
    assert [s.fixed for s in stages_of(module, x).free] == [None, None]
    assert student_of(module, x, factors=(2, 1), taps="none").plan.factors == (2, 1)


def test_sizes_among_the_operations_of_a_region_need_no_memory():
    class Levels(nn.Module):
        """Three levels, all resized to the first one's size."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = layer(3, 32, 4), layer(32, 64), layer(64, 64)
            self.mix, self.out = layer(160, 64, 1), nn.Conv2d(64, 4, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(a)
            maps = [F.interpolate(v, size=a.shape[2:], mode="bilinear") for v in (a, b, self.c(b))]
            return F.interpolate(self.out(self.mix(torch.cat(maps, 1))), scale_factor=4, mode="bilinear")

    assert student_of(Levels(), torch.randn(1, 3, 128, 128)).plan.peak_bytes > 0


class Merging(nn.Module):
    """Four interleaved parts of a map become its channels, as in Swin."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = layer(3, 16), nn.Conv2d(64, 16, 1), head(16)

    def forward(self, x):
        y = self.stem(x)
        parts = [y[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.head(self.mix(torch.cat(parts, 1)))


def test_slices_that_begin_within_the_first_step_move_between_stages():
    x = torch.randn(1, 3, 32, 32)
    stages = stages_of(Merging(), x)
    assert [stage.grid for stage in stages.free] == [(16, 16), (8, 8)]
    coarser = student_of(Merging(), x, factors=[2, 1], taps="none")
    assert [n.args[1][2:] for n in coarser.graph.nodes if n.name.startswith("getitem")] == [
        (slice(None, None, 1),) * 2
    ] * 4
    finer = student_of(Merging(), x, factors=[1, 2], taps="none")
    starts = [tuple(s.start or 0 for s in n.args[1][2:]) for n in finer.graph.nodes if n.name.startswith("getitem")]
    assert starts == [(0, 0), (0, 2), (2, 0), (2, 2)]


class Matched(nn.Module):
    """A decoder that enlarges its maps twofold, and then to the size of the skip, should that differ."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.joined, self.last = nn.Conv2d(48, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        skip = self.first(x).relu()
        up = F.interpolate(self.second(skip).relu(), scale_factor=2)
        if up.shape != skip.shape:
            up = F.interpolate(up, size=skip.shape[2:])
        return self.last(self.joined(torch.cat([up, skip], 1)).relu())


@pytest.mark.parametrize("side", [64, 61])
def test_a_map_that_nothing_computes_on_is_not_pooled_for_nothing(side):
    student = redistill.transform(Matched().eval(), torch.randn(1, 3, side, side), budget="1.5x")
    assert student.plan.factors == (2, 1, 1)
    assert student(torch.randn(1, 3, side, side)).shape == (1, 2, side, side)
