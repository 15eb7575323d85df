"""The network at a place, ready to sample with, and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from redistill import load_student
from redistill.data.sources import open_source
from redistill.distillation import MAIN
from redistill.errors import EvaluationError, ModelError
from redistill.internal.reasons import reason
from redistill.internal.text import format_shape
from redistill.recipe import RECIPE
from redistill.studies.evaluation.evaluating import EvaluationConfig
from redistill.studies.evaluation.generation import TrainedDenoiser
from redistill.studies.evaluation.paths import Place, Run, averaging
from redistill.trainers.checkpoint import read_checkpoint
from redistill.trainers.denoiser import DenoiserExperiment
from redistill.trainers.students import obtain_student


def open_denoiser(place: Place, config: EvaluationConfig) -> TrainedDenoiser:
    """The network at a place that is not images.

    Raises:
        RedistillError: files that are missing or damaged, or do not fit the run's configuration.
    """
    if place.run is None:
        return make_denoiser(load_student(place.path, trust=place.trust), str(place), config)
    if place.kind in ("run", "student"):
        network = load_delivered(place.run, place.path if place.kind == "student" else place.run.folder.student)
    else:
        state = checkpoint_weights(place.path) if place.kind == "checkpoint" else _read(place.path)
        network = build_network(place.run)
        _fill(network, state, place.path)
    return make_denoiser(network, str(place), config)


def open_teacher(place: Place, config: EvaluationConfig) -> TrainedDenoiser | None:
    """The teacher of a run's student; none of a network that is no student, or whose teacher had learnt nothing.

    Raises:
        EvaluationError: its weights are not where the run left them.
    """
    if place.run is None or not place.run.rewrites:
        return None
    teacher = place.run.config.teacher
    if teacher.recipe is None and teacher.weights in (None, "random"):
        return None
    if teacher.weights == "pretrained":
        return make_denoiser(
            place.run.load_model(teacher.model, teacher.weights), f"{teacher.model}, pretrained", config
        )
    weights = Path(teacher.weights).expanduser() if teacher.weights else place.run.folder.teacher(MAIN).trained_weights
    if not weights.is_file():
        raise EvaluationError(f"the teacher's weights are missing at {weights}; put them back there")
    described = [str(weights)] if teacher.recipe is None else [str(weights), averaging(teacher.recipe.ema)]
    return make_denoiser(place.run.load_model(teacher.model, weights), ", ".join(described), config)


def make_denoiser(network: nn.Module, description: str, config: EvaluationConfig) -> TrainedDenoiser:
    """A network with the schedule and the images' shape of a configuration.

    Raises:
        EvaluationError: it does not take such images and timesteps, as a classifier does not.
    """
    data, diffusion = config.data, config.diffusion
    classes = len(open_source(data).classes) if diffusion.conditional else 0
    shape = (data.channels, data.image_size, data.image_size)
    _try(network, shape, classes > 0, description)
    return TrainedDenoiser(network, diffusion.make_schedule(), diffusion.prediction, shape, description, classes)


def _try(network: nn.Module, shape: tuple[int, ...], conditional: bool, description: str) -> None:
    images, steps = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long)
    remedy = "only denoisers are evaluated, at the size that they were made for: set data.channels and data.image_size"
    try:
        with torch.inference_mode():
            output = network.eval()(images, steps, *([steps] if conditional else []))
    except Exception as error:
        raise EvaluationError(
            f"{description} does not run on images of {format_shape(shape)} ({reason(error)}); {remedy}"
        ) from error
    if not isinstance(output, Tensor) or output.shape != images.shape:
        got = format_shape(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        raise EvaluationError(f"{description} gives {got} for images of {format_shape(shape)}; {remedy}")


def load_delivered(run: Run, folder: Path) -> nn.Module:
    """The finished network of a run, in a folder of it."""
    spec = run.config.teacher.model
    if (folder / RECIPE).is_file():
        return load_student(folder, run.load_model(run.config.student.model or spec, "random"))
    if not run.weights.is_file():
        raise EvaluationError(
            f"{run.folder.path} is not finished; continue it with --resume, or give its {run.folder.best}"
        )
    return run.load_model(spec, run.weights)


def build_network(run: Run) -> nn.Module:
    """The network of a run, with any weights."""
    config = replace(run.config, student=replace(run.config.student, start="scratch"))
    return obtain_student(
        DenoiserExperiment(config, run.folder, trust=run.trust), run.load_model(config.teacher.model, "random")
    )


def checkpoint_weights(folder: Path) -> Mapping[str, Tensor]:
    """The moving average of a checkpoint where the run keeps one, else the weights themselves.

    Raises:
        CheckpointError: it is damaged, or an earlier version's.
    """
    state = read_checkpoint(folder)
    if state["average"] is not None:
        averaged: Mapping[str, Tensor] = state["average"]["values"]
        return averaged
    prefix = "network."
    return {
        name.removeprefix(prefix): value for name, value in state["task"]["values"].items() if name.startswith(prefix)
    }


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise EvaluationError(f"cannot read weights from {path} ({reason(error)}); give another place") from error


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit the network of its run's config.yaml: {reason(error)}") from error
