"""Batch norms in the pieces' weights: whatever changes the network's own weights is seen in the next run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Interpreter

from redistill import Student, measure, profile, transform
from redistill.passes.folded import FoldedWeights
from tests.graphs import image
from tests.test_patches_students import Classifier, difference

X = image(3, 1, 32)


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    teacher = Classifier()
    for _ in range(3):
        teacher(image(3, 8, 32))
    return transform(teacher.eval(), X, "3x", levers="patches").eval()


def whole(student: Student) -> nn.Module:
    """A copy of the student without its form in parts: it runs whole."""
    twin = copy.deepcopy(student)
    twin.meta.pop("deployed")
    twin.recompile()
    return twin


def write_past_autograd(student: Student) -> None:
    for parameter in student.parameters():
        parameter.data.copy_(parameter.data + 0.1 * torch.randn_like(parameter))


def load_others(student: Student) -> None:
    state = student.state_dict()
    others = {k: v + 0.05 * torch.randn_like(v) if k.endswith("weight") else v for k, v in state.items()}
    student.load_state_dict(others)


def train_its_taps_graph(student: Student) -> None:
    tapped = student.tapped().train()
    tapped(image(3, 4, 32) + 1)
    tapped.eval()


def round_to_half(student: Student) -> None:
    student.half().float()


CHANGES: dict[str, Callable[[Student], None]] = {
    "written past autograd": write_past_autograd,
    "others loaded": load_others,
    "statistics by another graph over the same modules": train_its_taps_graph,
    "rounded to half precision": round_to_half,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_folded_is_never_stale(student: Student, kind: str) -> None:
    changed = copy.deepcopy(student)
    with torch.no_grad():
        before = changed(X)
        CHANGES[kind](changed)
        after = changed(X)
        assert difference(after, whole(changed)(X)) <= 1e-5
    assert not torch.equal(after, before)


@pytest.mark.parametrize("kind", CHANGES)
def test_bytes_are_those_predicted_right_after_a_change(student: Student, kind: str) -> None:
    changed = copy.deepcopy(student)
    CHANGES[kind](changed)
    assert measure(changed, X) == profile(changed, X, "graph").peak_bytes


def test_pieces_call_no_batch_norm_and_the_weights_stay_the_students_own(student: Student) -> None:
    form = student.meta["deployed"]
    called = [form.get_submodule(n.target) for n in form.graph.find_nodes(op="call_module")]
    folded = [m for m in called if isinstance(m, FoldedWeights)]
    assert len({id(m) for m in folded}) == len(folded) > 0
    inside = {id(m.norm) for m in folded}
    assert not [m for m in called if id(m) in inside]
    own = {id(m) for m in student.modules()}
    assert all(id(m.norm) in own and id(m.convolution) in own for m in folded)
    assert not any("folded" in key for key in student.state_dict())


def test_convolutions_of_pieces_get_and_make_maps_with_channels_last(student: Student) -> None:
    class Layouts(Interpreter):
        def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = super().call_function(target, args, kwargs)
            if target is torch.conv2d:
                layouts.append(result.is_contiguous(memory_format=torch.channels_last))
            return result

    layouts: list[bool] = []
    with torch.no_grad():
        Layouts(student.meta["deployed"]).run(X)
    assert layouts
    assert all(layouts)


def test_gradients_in_eval_mode_are_those_of_the_network_run_whole(student: Student) -> None:
    parts, reference = copy.deepcopy(student).double(), whole(student).double()
    for network in (parts, reference):
        network(X.double()).square().sum().backward()
    pairs = zip(parts.named_parameters(), reference.parameters(), strict=True)
    for (name, a), b in pairs:
        assert a.grad is not None, name
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12), name


def test_a_compiled_student_sees_changes_too(student: Student) -> None:
    changed = copy.deepcopy(student)
    with torch.no_grad():
        compiled = torch.compile(changed, backend="eager")
        assert difference(compiled(X), student(X)) <= 1e-5
        write_past_autograd(changed)
        assert difference(compiled(X), whole(changed)(X)) <= 1e-5


def test_a_student_can_be_traced_where_no_gradients_are_wanted(student: Student) -> None:
    changed = copy.deepcopy(student)
    with torch.no_grad():
        traced = torch.jit.trace(changed, X)
        assert difference(traced(X), student(X)) <= 1e-5
