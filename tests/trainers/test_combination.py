"""What all methods share: gradients, blended labels, errors, weights, extra parameters."""

import pytest
import torch
from example_outputs import (
    hard_targets,
    outputs,
    soft_targets,
    student_outputs,
    teacher_outputs,
    tensors,
    training_set,
)

from redistill.distillation import METHODS, Distillation, Need, Outputs, Targets, create
from redistill.errors import ConfigError, RedistillError, TapError


def built(name, **options):
    torch.manual_seed(0)
    method, _ = create(name, options)
    method.build(student_outputs(), teacher_outputs(), training_set())
    return method


def detached(given):
    return Outputs(
        given.logits.detach(),
        *({name: value.detach() for name, value in maps.items()} for maps in (given.taps, given.stages)),
        {name: value.detach() for name, value in given.preactivations.items()},
        given.reentry.detach(),
        {name: value.detach() for name, value in given.coarse.items()},
    )


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_student_and_only_it(name):
    method = built(name)
    student, teacher = student_outputs(), detached(teacher_outputs())
    two_stage_only = name in ("ab", "fsp")
    losses = (method.initialise if two_stage_only else method.losses)(student, teacher, hard_targets())
    sum(losses.values()).backward()
    gradients = [value.grad for value in tensors(student) if value.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(value.grad is None for value in tensors(teacher))


@pytest.mark.parametrize("name", METHODS)
def test_equal_scalars_and_finite_helpers(name):
    method = built(name)
    losses = method.losses(student_outputs(), detached(teacher_outputs()), hard_targets())
    assert all(value.dim() == 0 and value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if Need.HARD_LABELS not in kind.needs])
def test_blended_labels_are_welcome(name):
    method = built(name)
    given = student_outputs(), detached(teacher_outputs()), soft_targets()
    assert torch.isfinite(method(*given))
    assert all(torch.isfinite(value) for value in method.initialise(*given).values())


def test_crd_refuses_blended_labels():
    with pytest.raises(TapError, match=r"targets\.mixing=none"):
        built("crd")(student_outputs(), detached(teacher_outputs()), soft_targets())


@pytest.mark.parametrize("name", ["fitnet", "vid", "ofd", "reviewkd", "ab", "kdsvd", "at", "nst", "red", "sp", "crd"])
def test_widths_may_differ(name):
    torch.manual_seed(0)
    method, _ = create(name, {})
    student, teacher = student_outputs(widths=(2, 3, 5)), detached(teacher_outputs())
    method.build(student, teacher, training_set())
    assert torch.isfinite(sum(method.initialise(student, teacher, hard_targets()).values(), torch.zeros(())))
    assert torch.isfinite(method(student, teacher, hard_targets()))


@pytest.mark.parametrize(
    ("name", "words"),
    [("fsp", "6 channels|5 channels"), ("stage", "use red"), ("fsp", "use at or nst")],
)
def test_equal_widths_are_demanded_where_the_mathematics_needs_them(name, words):
    method, _ = create(name, {})
    with pytest.raises(TapError, match=words):
        method.build(student_outputs(widths=(3, 4, 5)), teacher_outputs(), training_set())


def test_red_names_the_tap_and_both_shapes():
    student = outputs((6, 4, 2), (3, 4, 6), seed=1, taps=[("a", 3, 3)])
    with pytest.raises(TapError, match="at a the student's map is 3x3x3 and the teacher's 7x4x4"):
        create("red", {})[0].build(student, teacher_outputs(), training_set())


def test_reentry_without_a_node_says_what_to_use_instead():
    student = Outputs(stages=student_outputs().stages)
    with pytest.raises(TapError, match="use red"):
        create("reentry", {})[0].build(student, teacher_outputs(), training_set())


def test_unknown_stage_names_the_nearest():
    with pytest.raises(TapError, match="did you mean 'layer3'"):
        built("fitnet", stages=["layr3"])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("reed", {}, "no distillation method 'reed'; did you mean 'red'"),
        ("kd", {"temprature": 2}, "no option 'temprature'; did you mean 'temperature'"),
        ("kd", {"temperature": 0}, "must be above 0"),
        ("red", {"distance": "manhattan"}, "not one of cosine, mse"),
    ],
)
def test_misspelt_names_are_answered(name, options, words):
    with pytest.raises(ConfigError, match=words):
        create(name, options)


def test_different_class_counts_are_refused():
    student = Outputs(logits=torch.zeros(2, 10))
    with pytest.raises(RedistillError, match=r"\(2, 10\).*\(2, 5\)"):
        create("kd", {})[0].build(student, Outputs(logits=torch.zeros(2, 5)), training_set())


def test_the_sum_is_weighted_and_named_by_place():
    combined = Distillation({"kd": {"weight": 2.0}, "red": {"weight": 3.0, "warmup": 4}})
    combined.build(student_outputs(), teacher_outputs(), training_set())
    given = student_outputs(), detached(teacher_outputs()), hard_targets()
    losses = combined(*given, epoch=1.0)
    assert list(losses) == ["kd/logits", "red/a", "red/b"]
    assert losses["kd/logits"].item() == pytest.approx(2 * create("kd", {})[0](*given).item())
    red = losses["red/a"] + losses["red/b"]
    assert red.item() == pytest.approx(0.25 * 3 * create("red", {})[0](*given).item())
    assert combined.needs == {Need.LOGITS, Need.TAPS}


def test_published_weights_are_the_default():
    assert create("at", {})[1].weight == 1000
    assert create("crd", {})[1].weight == 0.8


def test_losses_are_computed_in_float32_under_autocast():
    combined = Distillation({"sp": {}, "kd": {}})
    student, teacher = student_outputs(), detached(teacher_outputs())
    half = Outputs(student.logits.bfloat16(), stages={n: v.bfloat16() for n, v in student.stages.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = combined(half, teacher, hard_targets())
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_extra_parameters_are_reported():
    combined = Distillation({"kd": {}, "fitnet": {}, "vid": {}, "ofd": {}})
    combined.build(student_outputs(), teacher_outputs(), training_set())
    assert combined.extra_parameters() == {
        "kd": 0,
        "fitnet": 4 * 4 + 4 + 8,
        "vid": sum(3 * c * c + c for c in (3, 4, 6)),
        "ofd": sum(c * c + 2 * c for c in (3, 4, 6)),
    }


def test_no_methods_no_losses():
    combined = Distillation({})
    assert combined(Outputs(), Outputs(), Targets()) == {}
    assert combined.needs == frozenset()
    assert not combined.two_stage


def test_the_paraphraser_is_frozen_in_the_second_stage():
    method = built("ft")
    method(student_outputs(), detached(teacher_outputs()), hard_targets()).backward()
    assert all(p.grad is None for p in (*method.encoder.parameters(), *method.decoder.parameters()))
    assert all(p.grad is not None for p in method.translator.parameters())


def test_duplicate_images_give_finite_gradients():
    features = torch.ones(4, 3, 1, 1, requires_grad=True)
    student = Outputs(stages={"layer1": features * torch.tensor([1.0, 1.0, 2.0, 3.0])[:, None, None, None]})
    teacher = Outputs(stages={"layer1": torch.randn(4, 3, 1, 1)})
    for name in ("rkd", "pkt", "cc", "sp"):
        method, _ = create(name, {})
        method(student, teacher, Targets()).backward(retain_graph=True)
        assert torch.isfinite(features.grad).all(), name
