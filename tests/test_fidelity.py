"""The objective fidelity: plans fitted and judged on images; calibration pictures of a folder; what is refused."""

import copy
import itertools
import math
import re

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import redistill
from redistill.commands.transform import main
from redistill.compiler import fidelity
from redistill.compiler.agreement import compare
from redistill.compiler.analysis import analyze
from redistill.compiler.candidates import candidates, find_candidates
from redistill.compiler.choosing import planning_problem
from redistill.compiler.fidelity import LOSSLESS
from redistill.compiler.levers import carry_out_patched
from redistill.compiler.request import Request
from redistill.data.calibration import Preparation, find_preparation, read_calibration
from redistill.errors import DataError, ModelError
from redistill.models import load_model
from redistill.report.phrases import describe_proof


def pictures(count, side=32):
    generator = torch.Generator().manual_seed(count)
    return F.interpolate(3 * torch.randn(count, 3, 8, 8, generator=generator), side, mode="bilinear")


def network(classes=5):
    """Three stages; the second looks at fine detail, so that it matters where the grid is coarse."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()]
    for before, after in ((32, 32), (32, 48)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))
    with torch.no_grad():
        model.train()(pictures(64))
    return model.eval()


def test_the_chosen_plan_agrees_best_of_those_that_fit():
    teacher, images = network(), pictures(80)
    kept = copy.deepcopy(teacher.state_dict())
    student = redistill.transform(teacher, images[:1], "2.5x", objective="fidelity", taps="none", calibration=images)
    assert student.plan.peak_bytes <= student.plan.limit
    assert student.plan.objective == "fidelity"
    assert describe_proof(student.plan, None) == "judged by pictures, see the notes"
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())
    note = next(note for note in student.provenance.notes if note.startswith("fidelity: "))
    assert "plans fitted and judged on 40 other images" in note
    held_out, shares = images[1::2], {}
    with torch.no_grad():
        aim = teacher(held_out)
        for factors in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)):
            if f"{','.join(map(str, factors))} (" in note:
                other = redistill.transform(teacher, images[:1], factors=factors, taps="none")
                inherited = compare([other.eval()(held_out)], [aim])
                found = [inherited]
                for layers in ("all", "restored"):
                    student_of = copy.deepcopy(other)
                    redistill.fit(student_of, teacher, images[0::2], layers=layers)
                    found.append(compare([student_of.eval()(held_out)], [aim]))
                agreement = max(found, key=lambda found: found.rank)
                assert (
                    f"{','.join(map(str, factors))} ("
                    + note.split(f"{','.join(map(str, factors))} (")[1].split(")")[0]
                    + f"): {agreement}"
                    in note
                )
                shares[factors] = agreement.rank
        assert len(shares) > 1
        assert max(shares, key=shares.get) == tuple(student.plan.factors)
        torch.testing.assert_close(compare([student.eval()(held_out)], [aim]).rank, shares[tuple(student.plan.factors)])


def test_candidates_are_the_pareto_front_and_smaller_images_whose_grid_comes_back():
    problem = planning_problem(analyze(network(), (pictures(1),)))
    limit = problem.peak([0] * len(problem.choices)) / 2.5
    fitting = {problem.factors(plan): plan for plan in problem.enumerate() if problem.peak(plan) <= limit}
    macs = {factors: problem.total_macs(plan) for factors, plan in fitting.items()}
    peaks = {factors: problem.peak(plan) for factors, plan in fitting.items()}
    front = [one for one in fitting if not any(peaks[o] <= peaks[one] and macs[o] > macs[one] for o in fitting)]
    smaller = set()
    for factor in (4, 8):  # the two mildest that fit
        for count in (1, 2, 3):
            alike = [one for one in fitting if one[1 : 1 + count] == (factor,) * count]
            smaller.update(sorted(alike, key=macs.__getitem__)[-1:])
    assert (1, 4, 4, 2) in smaller.difference(front)
    assert candidates(problem, limit) == sorted({*front, *smaller}, key=macs.__getitem__, reverse=True)


def test_plans_are_fitted_in_the_order_of_how_far_they_agree_as_they_are(monkeypatch):
    teacher, images, order, looks = network(), pictures(80), [], []
    judge, compare = fidelity.Judge.__call__, fidelity.compare

    def judged(self, student, inherited):
        order.append(inherited.rank)
        return judge(self, student, inherited)

    monkeypatch.setattr(fidelity.Judge, "__call__", judged)
    monkeypatch.setattr(fidelity, "compare", lambda *given: looks.append(compare(*given)) or looks[-1])
    options = {"objective": "fidelity", "taps": "none", "calibration": images}
    redistill.transform(teacher, images[:1], "2.5x", **options)
    count = len(order)
    assert count > 2
    assert 2 * count <= len(looks) <= 3 * count  # each as it is, and fitted as a whole or in part
    first = [look.rank for look in looks[:count]]
    assert order == sorted(first, reverse=True) != first
    student = redistill.transform(teacher, images[:1], "2.5x", time_limit=1e-3, **options)  # one look, one fit
    assert f"{count - 1} more plans were not tried within 0 seconds" in "\n".join(student.provenance.notes)


def joint(levers="patches,pool", **options):
    request = Request.of("2.5x", levers=levers, taps="none", max_extra_macs=0.1, **options)
    analysis = analyze(network(), (pictures(1),))
    return analysis, request, request.limit(analysis.profile.peak_bytes)


def test_with_patches_the_candidates_are_what_patches_bring_under_the_limit():
    analysis, request, limit = joint()
    problem = planning_problem(analysis)
    found = find_candidates(analysis, request, limit, 60)
    index = [tuple(c.index(f) for c, f in zip(problem.choices, plan, strict=True)) for plan in found]
    assert len(index) > 2
    for plan in problem.enumerate():
        if problem.total_macs(plan) > problem.total_macs(index[0]):
            assert carry_out_patched(analysis, request, limit, problem.factors(plan)) is None
    pooled = tuple(c.index(f) for c, f in zip(problem.choices, candidates(problem, limit)[0], strict=True))
    assert problem.total_macs(index[0]) > problem.total_macs(pooled)
    kept = copy.deepcopy(analysis.graph_module.state_dict())
    for make in found.values():
        choice = make()
        assert choice.rewritten.profile.peak_bytes <= limit
        for parameter in choice.rewritten.graph_module.parameters():
            parameter.data.zero_()
    assert all(torch.equal(value, kept[key]) for key, value in analysis.graph_module.state_dict().items())


def test_no_further_plan_is_sought_with_patches_once_time_is_over():
    assert len(find_candidates(*joint(), seconds=0)) == 1


@pytest.mark.parametrize("levers", ["patches,pool", "patches,resize"])
def test_fidelity_judges_what_patches_bring_under_the_limit(levers):
    teacher, images = network(), pictures(40)
    options = {"objective": "fidelity", "levers": levers, "taps": "none", "max_extra_macs": 0.1, "calibration": images}
    student = redistill.transform(teacher, images[:1], "2.5x", **options).eval()
    assert student.plan.objective == "fidelity"
    assert student.plan.peak_bytes <= student.plan.limit
    image = images[:1].clone()
    assert redistill.measure(student, image) == redistill.profile(student, image, "graph").peak_bytes
    (note,) = (note for note in student.provenance.notes if note.startswith("fidelity: "))
    judged = re.findall(r"([\d,]+) \([\d.]+ KiB\): ([\d.]+) % agree", note)
    assert judged[0][0] == ",".join(map(str, student.plan.factors))
    assert float(judged[0][1]) == max(float(share) for _, share in judged)


def test_where_patches_suffice_they_win_at_once():
    teacher, images = network(), pictures(8)
    student = redistill.transform(
        teacher, images[:1], "2x", objective="fidelity", levers="patches,pool", max_extra_macs=1, calibration=images
    ).eval()
    assert set(student.plan.factors) == {1}
    assert student.patches.regions
    assert LOSSLESS in student.provenance.notes
    with torch.no_grad():
        torch.testing.assert_close(student(images), teacher(images))


def test_maps_are_judged_by_their_error():
    torch.manual_seed(0)
    teacher = load_model("redistill:ddpm_unet?width=16", "random").eval()
    inputs = (torch.randn(8, 3, 16, 16), torch.arange(8))
    student = redistill.transform(
        teacher,
        tuple(v[:1] for v in inputs),
        "2x",
        objective="fidelity",
        taps="none",
        calibration=inputs,
        time_limit=1e-3,
    )
    notes = "\n".join(student.provenance.notes)
    assert "error " in notes
    assert "% of the variance" in notes
    assert "more plans were not tried within 0 seconds" in notes


def test_with_images_the_student_of_any_objective_comes_fitted():
    teacher, images = network(), pictures(60)
    plain = redistill.transform(teacher, images[:1], "2.5x", taps="none").eval()
    fitted = redistill.transform(teacher, images[:1], "2.5x", taps="none", calibration=images).eval()
    assert fitted.plan.factors == plain.plan.factors
    assert any("fitted 4 of 4 layers" in note for note in fitted.provenance.notes)
    with torch.no_grad():
        aim = teacher(images)
        assert F.mse_loss(fitted(images), aim) < F.mse_loss(plain(images), aim)


def test_a_fit_that_agrees_less_than_the_inherited_weights_is_dropped(monkeypatch):
    def spoil(student, teacher, inputs, **_):
        for value in student.parameters():
            value.data.fill_(torch.nan)

    monkeypatch.setattr(fidelity, "fit_graphs", spoil)
    teacher, images = network(), pictures(20)
    plain = redistill.transform(teacher, images[:1], "2.5x", taps="none").state_dict()
    student = redistill.transform(teacher, images[:1], "2.5x", taps="none", calibration=images)
    assert all(torch.equal(value, plain[key]) for key, value in student.state_dict().items())
    (note,) = (note for note in student.provenance.notes if note.startswith("the inherited weights are kept"))
    assert re.search(r"judged on 10 images.*% agree.*with the inherited weights \(fitted: .*% agree", note)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "give calibration=images"),
        (pictures(8, 24), "calibration images are 3x24x24, the network is planned for 3x32x32"),
        (pictures(3), "needs 4 images or more, not 3"),
        ([*pictures(8)], "calibration is a list, the network takes tensors of torch.float32"),
        (pictures(8).byte(), "calibration is torch.uint8, the network takes"),
        (pictures(8) * math.nan, "no finite numbers"),
        ((pictures(8), pictures(8)), "calibration has 2 inputs, the network takes 1"),
    ],
)
def test_calibration_that_cannot_serve_is_refused(calibration, message):
    with pytest.raises(ModelError, match=message):
        redistill.transform(network(), pictures(1), "2.5x", objective="fidelity", calibration=calibration)


def test_agreement_of_equal_outputs_is_whole():
    scores = torch.randn(6, 4)
    assert compare([scores], [scores]).rank == (1.0, 0.0)
    assert compare([scores], [scores.roll(1, 1)]).share < 1
    assert compare([torch.zeros(2, 3, 4, 4)], [torch.randn(2, 3, 4, 4)]).share is None


def save_pictures(folder, count, side=40):
    folder.mkdir(parents=True)
    for index, image in enumerate(pictures(count, side)):
        pixels = (image.permute(1, 2, 0) * 30 + 128).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index:03}.png")


def test_pictures_are_prepared_as_the_model_was_taught(tmp_path):
    save_pictures(tmp_path / "photos" / "below", 6)
    known = find_preparation("torchvision:resnet18", nn.Identity())
    assert (known.resize, known.mean) == (256, (0.485, 0.456, 0.406))
    assert find_preparation("redistill:ddpm_unet", nn.Identity()) == Preparation()
    found = read_calibration(
        tmp_path / "photos", torch.zeros(1, 3, 32, 24), Preparation(32, (0.5,) * 3, (0.25,) * 3), 4
    )
    assert found.shape == (4, 3, 32, 24)
    assert abs(found.mean()) < 0.5
    assert -2 <= found.min() < found.max() <= 2


def test_the_command_reads_a_folder_and_says_what_it_cannot_use(tmp_path, capsys):
    save_pictures(tmp_path / "photos", 8, 64)
    model = ["--model", "redistill:mobilenet_v2_strided?num_classes=4&width_mult=0.25", "--input", "3x32x32"]
    options = [*model, "--objective", "fidelity", "--time-limit", "1", "--taps", "none"]
    assert main([*options, "--calibration", str(tmp_path / "photos"), "--output", str(tmp_path / "student")]) == 0
    assert "fidelity" in capsys.readouterr().out
    loaded = redistill.load_student(tmp_path / "student")
    assert loaded.plan.objective == "fidelity"
    with pytest.raises(ModelError, match="--calibration FOLDER"):
        main(options)
    with pytest.raises(DataError, match=r"nowhere cannot be read as a folder \(No such file"):
        main([*options, "--calibration", str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        main([*options, "--calibration", str(tmp_path / "empty")])
    for name in ("000.png", "003.png"):
        (tmp_path / "photos" / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 8 pictures cannot be read: .*000\.png \(.*003\.png"):
        main([*options, "--calibration", str(tmp_path / "photos")])
    for mean in ("grey", "nan", "1,2", "inf,0,0", ""):
        with pytest.raises(DataError, match=f"cannot read mean '{mean}'"):
            main([*options, "--calibration", str(tmp_path / "photos"), "--mean", mean])
