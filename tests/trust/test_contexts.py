"""Whatever mode the caller is in, the student is the same; and nothing of the caller's is moved."""

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import redistill


def block(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.1)]


def make_teacher():
    torch.manual_seed(0)
    return nn.Sequential(*block(3, 24), *block(24, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()


IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IMAGE = IMAGES[:1]


class PlainDispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class PlainFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def changed(setter, value, before):
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad in no_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "default device meta": lambda: changed(torch.set_default_device, "meta", None),
    "default dtype float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "anomaly": torch.autograd.detect_anomaly,
    "warnings as errors": warnings_as_errors,
    "a dispatch mode": PlainDispatch,
    "a function mode": PlainFunctions,
    "fake tensors": FakeTensorMode,
}


@pytest.fixture(scope="module")
def expected():
    teacher = make_teacher()
    student = redistill.transform(teacher, IMAGE, "2x").eval()
    with torch.no_grad():
        return student.plan, student(IMAGES), redistill.profile(teacher, IMAGE, "eager").peak_bytes


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_student_is_the_same_in_every_context(name, expected):
    plan, output, eager = expected
    teacher = make_teacher()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        context = CONTEXTS[name]()
    with context:
        student = redistill.transform(teacher, IMAGE, "2x")
        found = redistill.profile(teacher, IMAGE, "eager").peak_bytes
    assert found == eager
    assert (student.plan.factors, student.plan.peak_bytes) == (plan.factors, plan.peak_bytes)
    assert not any(value.is_inference() or value.is_meta for value in student.state_dict().values())
    with torch.no_grad():
        assert torch.equal(student.eval()(IMAGES), output)
    student.train()(IMAGES).sum().backward()


def everything(model):
    """All that could be moved, outside and in the model."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "modes": {name: part.training for name, part in model.named_modules()},
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "tensors": {name: id(value) for name, value in model.state_dict(keep_vars=True).items()},
        "writes": {name: value._version for name, value in model.state_dict(keep_vars=True).items()},
        "attributes": {name: sorted(part.__dict__) for name, part in model.named_modules()},
        "gradients": [p.grad for p in model.parameters()],
        "functions": [torch.zeros, torch.arange, nn.Module.__call__, nn.Module.__getattr__],
    }


ACTIONS = {
    "transform": lambda m, path: redistill.transform(m, IMAGE, "2x"),
    "transform, eager": lambda m, path: redistill.transform(m, IMAGE, "2x", "eager", reorder=True),
    "infeasible": lambda m, path: redistill.transform(m, IMAGE, "100B"),
    "profile": lambda m, path: redistill.profile(m, IMAGES),
    "measure": lambda m, path: redistill.measure(m, IMAGES),
    "teacher_tapped": lambda m, path: redistill.transform(m, IMAGE, "2x").teacher_tapped(m)(IMAGES),
    "fit": lambda m, path: redistill.fit(redistill.transform(m, IMAGE, "2x"), m, IMAGES),
    "save and load": lambda m, path: redistill.load_student(
        redistill.transform(m, IMAGE, "2x").save(path / "student"), m
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_callers_is_moved(name, training, tmp_path):
    model = make_teacher().train(training)
    model[1].training = not training
    before = everything(model)
    with contextlib.suppress(redistill.RedistillError):
        ACTIONS[name](model, tmp_path)
    after = everything(model)
    assert [key for key in before if before[key] != after[key]] == []
