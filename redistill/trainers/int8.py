"""The int8 stage of a run: round the trained student, then train it rounded, by the same loop, losses and teachers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from redistill.compiler.record import to_recipe
from redistill.config.files import resolved
from redistill.config.recipes import RecipeConfig, ScheduleConfig
from redistill.config.settings import ClassifierConfig
from redistill.distillation import Outputs
from redistill.distillation.views import View
from redistill.errors import ConfigError
from redistill.internal import seeding
from redistill.internal.suggestions import suggest
from redistill.internal.tables import render_table
from redistill.internal.text import format_bytes
from redistill.memory.profiling import profile
from redistill.quantization import FakeQuantized, quantize
from redistill.quantization.backend import require_backend
from redistill.quantization.files import save_program
from redistill.student import Student, record_of
from redistill.trainers.acceleration import processes
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.folder import RunFolder
from redistill.trainers.loop import Loop
from redistill.trainers.progress import Facts
from redistill.trainers.state import digest
from redistill.trainers.students import deliver

BATCH = 64
"""Images shown to the observers at a time."""
CONVENTIONS, DTYPES = ("deploy", "arena"), ("fp32", "int8")
STEPS = {"post_training": "int8, post-training", "aware": "int8, quantisation-aware"}

Figures = dict[str, Any]


class FakeQuantizedView(View):
    """A fake-quantised network with its features as outputs."""

    module: FakeQuantized

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run the network."""
        return self.sort(self.module.tapped(*inputs))


def check_int8(config: ClassifierConfig) -> None:
    """Refuse before the work what would fail after it: a missing package, or another precision."""
    if config.quantization.mode == "none":
        return
    require_backend()
    if config.run.precision != "no":
        raise ConfigError(f"run.precision={config.run.precision}: int8 is trained in fp32; --set run.precision=no")


def check_float_modules(config: ClassifierConfig, student: nn.Module) -> None:
    """Refuse modules to be left in floating point that the student does not have, before it is trained."""
    known = dict(student.named_modules())
    for name in config.quantization.float_modules:
        if name not in known:
            raise ConfigError(f"quantization.float_modules: there is no module {name!r}{suggest(name, known)}")


def quantize_student(
    config: ClassifierConfig, loop: Loop, student: nn.Module, teacher: nn.Module, folder: RunFolder
) -> Figures:
    """Deliver the int8 student of a finished run, as a file and, if it was trained, as a student's folder.

    Args:
        loop: the finished loop; its task knows data, losses and teachers.
        student: the float student; it is not changed.
        teacher: for the table of memory.
        folder: the run's folder.

    Returns:
        Accuracies after rounding (``post_training``) and after training (``aware``), and the ``memory`` in bytes.
    """
    task, asked = loop.task, config.quantization
    assert isinstance(task, ClassifierTask)
    example = _images(task, 1, config.run.seed)
    program = quantize(student, _batches(config, task), example, asked.float_modules)
    figures: Figures = {"post_training": _measure(loop, _with_network(task, program))}
    if asked.epochs:
        network = _fake_quantize(config, task, loop.order.batches, example)
        view = FakeQuantizedView(network, task.distiller.student_view.nodes)
        learner = _with_network(task, network)
        learner.learn_by(task.distiller.with_student(network, view))
        learner.first_stage_epochs = 0
        run = replace(config.run, compile=False, brief=True)
        facts = Facts(resolved(config), {**loop.facts.networks, "student": digest(student)})
        trained = Loop(learner, rounded_recipe(config), run, folder.int8, config.data.workers, facts)
        trained.run(resume=bool(trained.checkpoints.all()))
        program = network.convert()
        figures["aware"] = _measure(trained, _with_network(task, program))
        _deliver_weights(student, network, folder.int8)
    figures["memory"] = {"teacher": _peaks(teacher, example), "student": _peaks(student, example)}
    if processes().is_main_process:
        save_program(program, example, folder.program, _facts(config, student, example, figures))
    return figures


def rounded_recipe(config: ClassifierConfig) -> RecipeConfig:
    """The float recipe with the int8 stage's epochs and learning rate, which falls to zero; no moving average."""
    optimizer = replace(config.recipe.optimizer, learning_rate=config.quantization.learning_rate)
    own = replace(config.recipe, epochs=config.quantization.epochs, steps=None, ema=None)
    return replace(own, optimizer=optimizer, schedule=ScheduleConfig(name="cosine"))


def render_int8(summary: Mapping[str, Any]) -> str:
    """What int8 costs in accuracy and what it needs in memory, as two tables."""
    figures, top1 = summary["int8"], summary["last"]["test"]["top1"]
    rows: list[tuple[str, ...]] = [("student", "validation top-1", "test top-1", "against float", "test loss")]
    found = {"float": summary["last"], **{label: figures[name] for name, label in STEPS.items() if name in figures}}
    for label, metrics in found.items():
        validation, test = metrics["validation"]["top1"], metrics["test"]["top1"]
        cells = (f"{validation:.2f} %", f"{test:.2f} %", f"{test - top1:+.2f}", f"{metrics['test']['loss']:.4f}")
        rows.append((label, *cells))
    columns = [(convention, dtype) for convention in CONVENTIONS for dtype in DTYPES]
    peaks: list[tuple[str, ...]] = [("peak memory", *(f"{dtype}, {convention}" for convention, dtype in columns))]
    for name, sizes in figures["memory"].items():
        peaks.append((name, *(format_bytes(sizes[convention][dtype]) for convention, dtype in columns)))
    return f"{render_table(rows)}\n\n{render_table(peaks)}"


def _with_network(task: ClassifierTask, network: nn.Module) -> ClassifierTask:
    """The same task, data and teachers for another network."""
    twin = copy.copy(task)
    twin._modules = {**task._modules, "network": network}
    return twin


def _measure(loop: Loop, task: ClassifierTask) -> Figures:
    task.eval().prepare(loop.accelerator.device, channels_last=task.channels_last, compiled=False)
    return {"validation": loop.measure(task.validation_set, task), "test": loop.measure(task.test_set, task)}


def _fake_quantize(config: ClassifierConfig, task: ClassifierTask, batches: int, example: Tensor) -> FakeQuantized:
    asked = config.quantization
    passes = asked.epochs * batches * config.recipe.accumulation
    freeze_after = max(1, round((1 - asked.freeze) * passes)) if asked.freeze else None
    shown = task.distiller.student_view.module
    return FakeQuantized(shown, _batches(config, task), example, asked.float_modules, freeze_after)


def _batches(config: ClassifierConfig, task: ClassifierTask) -> Iterator[Tensor]:
    """Images that were held out of the training set, for the observers."""
    return iter(torch.split(_images(task, config.quantization.images, config.run.seed), BATCH))


def _images(task: ClassifierTask, count: int, seed: int) -> Tensor:
    held_out: Any = task.validation_set
    order = torch.randperm(len(held_out), generator=seeding.generator(seed, "calibration"))
    return torch.stack([held_out[index]["inputs"] for index in order[:count].tolist()])


def _deliver_weights(student: nn.Module, network: FakeQuantized, folder: RunFolder) -> None:
    """The float student's folder with the weights that were trained rounded."""
    own = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(network.weights(), strict=False)
    if processes().is_main_process:
        deliver(student, folder)
    student.load_state_dict(own)


def _peaks(network: nn.Module, example: Tensor) -> dict[str, dict[str, int]]:
    """Peak bytes for one image by convention and type."""

    inference = copy.deepcopy(network).cpu().eval()

    def peak(convention: str, dtype: str) -> int:
        return profile(inference, example, convention, dtype).peak_bytes

    return {convention: {dtype: peak(convention, dtype) for dtype in DTYPES} for convention in CONVENTIONS}


def _facts(config: ClassifierConfig, student: nn.Module, example: Tensor, figures: Figures) -> Figures:
    """What a user of the file needs to know."""
    data = config.data
    return {
        "input": list(example.shape),
        "mean": list(data.mean),
        "std": list(data.std),
        "data": data.name,
        "test": figures["aware" if "aware" in figures else "post_training"]["test"],
        "memory": figures["memory"]["student"],
        "student": to_recipe(record_of(student)) if isinstance(student, Student) else None,
    }
