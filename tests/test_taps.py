import pytest
import torch
import torchvision
from torch import nn

import redistill
from redistill.compiler.analysis import analyze
from redistill.errors import TapError
from redistill.memory.conventions import DEPLOY
from redistill.models import load_model
from redistill.planning.red_overhead import red_overhead
from redistill.planning.taps import choose_taps, read_taps, resolve_taps
from redistill.report.data import red_macs


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def resnet(request):
    model = torchvision.models.get_model(request.param, weights=None)
    return analyze(model, (torch.zeros(1, 3, 224, 224),), check=False)


def test_the_taps_of_the_papers_resnet_students_are_the_papers_own(resnet):
    taps = choose_taps(resnet.crossings, (1, 4, 2, 2, 2, 1), resnet.stages)
    assert [(t.student, t.teacher, t.grid) for t in taps] == [
        ("conv1 out", "layer2.0 out", (28, 28)),
        ("layer2.0 in", "layer3.0 in", (28, 28)),
        ("layer2.0 out", "layer3.0 out", (14, 14)),
        ("layer3.0 in", "layer4.0 in", (14, 14)),
        ("layer3.0 out", "layer4.0 out", (7, 7)),
    ]
    expected = {"resnet18": (64, 64, 128, 128, 256), "resnet50": (64, 256, 512, 512, 1024)}
    assert tuple(t.channels for t in taps) in expected.values()


def test_where_the_student_is_the_teacher_there_is_no_tap(resnet):
    taps = choose_taps(resnet.crossings, (1, 4, 2, 1, 1, 1), resnet.stages)
    assert {t.module for t in taps} == {"conv1"}
    assert choose_taps(resnet.crossings, (1,) * 6, resnet.stages) == ()


def test_narrow_places_are_preferred():
    model = load_model("redistill:mobilenet_v2_strided?strides=[1,1,2,2,2,1,2,1]", "random")
    analysis = analyze(model, (torch.zeros(1, 3, 128, 128),), check=False)
    taps = choose_taps(analysis.crossings, (1, 4, 4, 4, 2, 1), analysis.stages)
    assert [(t.student, t.teacher, t.channels) for t in taps] == [
        ("features.0.0 out", "features.4.conv out", 32),
        ("features.2.conv in", "features.7.conv in", 16),
        ("features.2.conv out", "features.7.conv out", 24),
        ("features.4.conv in", "features.14.conv in", 24),
        ("features.4.conv out", "features.14.conv out", 32),
    ]


def test_a_unet_is_tapped_on_both_ways():
    unet = load_model("redistill:ddpm_unet?width=16", "random")
    inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    analysis = analyze(unet, inputs, check=False)
    taps = choose_taps(analysis.crossings, (1, 2, 2, 2, 1, 1), analysis.stages)
    sides = {t.student: (t.teacher, t.grid) for t in taps}
    assert sides["head out"] == ("downblocks.2.conv out", (16, 16))
    assert sides["tail.2 in"][1] == (16, 16)
    assert sides["tail.2 in"][0].startswith("upblocks.")
    assert all(t.teacher.split(".")[0] == t.student.split(".")[0] for t in taps if "blocks" in t.student)


def places(resnet, *pairs):
    entries = tuple(pairs)
    return resolve_taps(entries, resnet.graph_module, (1,) * 6, resnet.stages)


def test_a_tap_stands_behind_what_enlarges_its_map():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.deep = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
            self.up, self.last = (nn.ConvTranspose2d(16, c, 3, 2, 1, output_padding=1) for c in (8, 2))
            self.head = nn.Conv2d(2, 2, 3, 1, 1)

        def forward(self, x):
            down = self.down(x)
            return self.head(self.last(torch.cat([down, self.up(self.deep(down))], 1)))

    student = redistill.transform(
        Net().eval(), torch.zeros(1, 1, 64, 64), factors=[2, 1, 1], taps=[("last out", "last out")]
    )
    (block,) = (n for n in student.graph.nodes if n.meta.get("tap") == "last_out")
    assert student.get_submodule("last").stride == (4, 4)
    assert "last" in {n.name for n in student.graph.nodes if n < block}
    assert student.taps[0].grid == (64, 64)
    assert student(torch.zeros(1, 1, 64, 64)).shape == (1, 2, 64, 64)


def test_taps_by_hand_are_checked(resnet):
    (tap,) = places(resnet, ("layer2.0 in", "maxpool out"))
    assert (tap.grid, tap.name) == ((56, 56), "layer2_0_in")
    with pytest.raises(TapError, match=r"no such place 'layer2.00 in'.*did you mean 'layer2.0 in'"):
        places(resnet, ("layer2.00 in", "maxpool out"))
    with pytest.raises(TapError, match=r"'layer2.0 out' has grid 28x28 in the student, 'maxpool out' has 56x56"):
        places(resnet, ("layer2.0 out", "maxpool out"))
    with pytest.raises(TapError, match="write a module's path and 'in' or 'out'"):
        places(resnet, ("layer2.0", "maxpool out"))


def test_a_tap_file_is_read_or_refused(tmp_path):
    file = tmp_path / "taps.yaml"
    file.write_text('- {student: "layer2.0 in", teacher: "layer3.0 in"}\n')
    assert read_taps(file) == (("layer2.0 in", "layer3.0 in"),)
    file.write_text("- {student: a}\n")
    with pytest.raises(TapError, match="must be a list of"):
        read_taps(file)
    with pytest.raises(TapError, match="cannot be read: No such file"):
        read_taps(tmp_path / "missing.yaml")


def test_light_blocks_cost_less_arithmetic_within_the_same_peak(tmp_path):
    teacher, x = load_model("redistill:cifar_resnet?depth=8", "random"), torch.randn(1, 3, 32, 32)
    gentle, light = (
        redistill.transform(teacher, x, "2x", taps="auto", init=init).eval() for init in ("gentle", "light")
    )
    assert (light.plan.factors, light.plan.peak_bytes) == (gentle.plan.factors, gentle.plan.peak_bytes)
    assert [tap.name for tap in light.taps] == [tap.name for tap in gentle.taps] != []
    cost = {student: red_macs(redistill.profile(student, x)) for student in (gentle, light)}
    assert 0 < cost[light] < 0.2 * cost[gentle]
    again = redistill.load_student(light.save(tmp_path / "student"), teacher).eval()
    assert torch.equal(again(x), light(x))
    assert redistill.measure(light, x) == redistill.profile(light, x, "graph").peak_bytes


def test_how_much_a_block_needs_is_found_without_a_draw():
    red_overhead.cache_clear()
    before = torch.get_rng_state()
    red_overhead(DEPLOY)
    assert torch.equal(torch.get_rng_state(), before)
