"""What one kind of experiment is: its task, and what its networks are called with. All else is common to all kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from redistill.config.settings import AugmentationConfig, ExperimentConfig
from redistill.config.trust import check_trust
from redistill.data.datasets import DataSets, open_data
from redistill.distillation import MAIN, Distillation, Distiller
from redistill.errors import ConfigError
from redistill.internal import seeding
from redistill.internal.suggestions import suggest
from redistill.models import load_model
from redistill.models.specs import require_trust
from redistill.trainers.folder import RunFolder
from redistill.trainers.loop import Loop
from redistill.trainers.task import Task

Config = TypeVar("Config", bound=ExperimentConfig)
Row = tuple[str, ...]
PROBE = 32
"""Images from which methods learn the shapes of what is shown."""


class Experiment(ABC, Generic[Config]):
    """Base of the classifier's and the denoiser's experiments.

    Attributes:
        config: the whole configuration.
        folder: the run's folder.
        trust: whether that may be imported which the configuration names as ``package.module:Name``: models, data sets,
            methods, objectives, conventions.
        data: the images.
    """

    def __init__(
        self, config: Config, folder: Path | RunFolder, data: DataSets | None = None, *, trust: bool = False
    ) -> None:
        self.config, self.trust = config, trust
        self.folder = RunFolder.at(folder)
        check_trust(config, "the configuration", trust)
        self.data = data or open_data(config.data, config.run.seed)

    def augmented(self, augmentation: AugmentationConfig) -> Experiment[Config]:
        """The same experiment on images augmented otherwise."""
        config = self.config
        changed = replace(config, data=replace(config.data, augmentation=augmentation))
        return type(self)(changed, self.folder, trust=self.trust)

    def load_model(self, spec: str, weights: str | Path | None = None) -> nn.Module:
        """The model of a spec in the configuration.

        Raises:
            TrustError: it would have to be imported, and nobody has said that it may.
        """
        return load_model(require_trust(spec, "the configuration", self.trust), weights)

    @abstractmethod
    def inputs(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """What a network is called with for these training images, without augmentation."""

    def ask(self, teacher: nn.Module) -> None:
        """Let the main teacher label the images, where they have no labels and the experiment needs some."""

    @abstractmethod
    def make_task(self, network: nn.Module) -> Task:
        """The task of a network that learns from the data, and from teachers too where it is a distiller."""

    def make_distiller(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> Distiller:
        """The student beside its teachers, with the methods of the configuration.

        Raises:
            ConfigError, TapError: as :class:`~redistill.Distiller` does.
        """
        methods, data = self.config.distillation.methods, self.data
        example = self.inputs(range(min(PROBE, len(data.calibration))))
        with seeding.seeded(self.config.run.seed, "helpers"):
            return Distiller(student, teachers, methods, example=example, training_set=data.training_set)

    @abstractmethod
    def check(self, model: nn.Module, name: str) -> None:
        """Refuse a model that does not fit the data.

        Raises:
            ModelError: naming the model and the remedy.
        """

    def check_settings(self) -> None:
        """Refuse before the work, a teacher's training say, what would fail after it."""
        known = (MAIN, *self.config.teachers)
        distillation, recipe = Distillation(self.config.distillation.methods), self.config.recipe
        for name in distillation.teachers:
            if name not in known:
                raise ConfigError(f"distillation: there is no teacher {name!r}{suggest(name, known)}")
        learns = self.config.distillation.task > 0 or any(part.share.weight > 0 for part in distillation.parts)
        if not learns and (recipe.steps or recipe.epochs):
            raise ConfigError(
                "distillation.task=0 and no method with a weight leave nothing to learn from; give distillation.methods"
            )

    def check_student(self, student: nn.Module) -> None:
        """Refuse a student that does not go with the settings."""

    def follow_up(self, loop: Loop, student: nn.Module, teacher: nn.Module) -> dict[str, Any]:
        """What comes after the finished loop, with the delivered student; its figures join the summary."""
        return {}

    @abstractmethod
    def describe(self, metrics: Mapping[str, float]) -> str:
        """The figure that matters most, in words."""

    @abstractmethod
    def rows(self, summary: Mapping[str, Any]) -> list[Row]:
        """The closing table: its heads, then one row for each set of weights in the summary."""

    def remarks(self, summary: Mapping[str, Any]) -> list[str]:
        """Lines below everything else."""
        return []
