"""Denoisers compared by their images: a table beside the teacher and the floor, and samples from the same noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import merge, read, resolved
from redistill.config.trust import check_trust
from redistill.distillation import MAIN
from redistill.internal.files import checksum, write_atomically
from redistill.internal.tables import Table
from redistill.studies.comparison.runs import ComparisonConfig, Judge, Result, Row, Scores
from redistill.studies.evaluation.evaluating import EvaluationConfig, Evaluator
from redistill.studies.evaluation.generation import TrainedDenoiser
from redistill.studies.evaluation.loading import make_denoiser, open_denoiser
from redistill.studies.evaluation.paths import Place, averaging, open_run
from redistill.studies.evaluation.pictures import read_strip, write_strip
from redistill.studies.evaluation.report import (
    COLUMNS,
    FLOOR,
    cells,
    describe_reference,
    list_scores,
    to_json,
    write_grid,
)
from redistill.studies.evaluation.timesteps import TimestepError, plot_errors
from redistill.trainers.acceleration import processes
from redistill.trainers.denoiser import DenoiserExperiment, train
from redistill.trainers.teachers import obtain_teacher

REFERENCE = "the teacher"
FILE, STRIP = "evaluation.json", "images.png"


class ImageJudge(Judge):
    """Scores of images from one noise in all runs, with their settings and weights in ``evaluation.json``.

    An evaluation is used again only while both are what they were.
    """

    kind = DenoiserConfig
    reference = Row("1x", "", REFERENCE, ())

    def __init__(self, config: ComparisonConfig, folder: Path, *, trust: bool = False) -> None:
        super().__init__(config, folder, trust=trust)
        self.common: DenoiserConfig = self.settings(self.reference, config.seeds[0])
        inherited = {name: resolved(getattr(self.common, name)) for name in ("data", "diffusion")}
        self.evaluation = read(EvaluationConfig, merge(inherited, dict(config.evaluation)))
        check_trust(self.evaluation, "the comparison", trust)

    @cached_property
    def evaluator(self) -> Evaluator:
        """For all rows."""
        return Evaluator(self.evaluation)

    def train(self, settings: DenoiserConfig, place: Path, *, resume: bool) -> None:
        """Carry out one run."""
        train(settings, place, resume=resume, trust=self.trust)

    def seeds(self, row: Row) -> Sequence[int]:
        """There is one teacher."""
        return self.config.seeds[:1] if row == self.reference else super().seeds(row)

    def is_done(self, row: Row, seed: int) -> bool:
        """The teacher has no run of its own: it is done when it is scored."""
        return (self.place(row, seed) / FILE).is_file() if row == self.reference else super().is_done(row, seed)

    def score(self, row: Row, seed: int) -> Scores:
        """Fidelity, and nearness to the teacher's images."""
        _ = self.evaluator  # before anything is trained: it finds what cannot be scored
        place = self.place(row, seed)
        if row == self.reference:
            denoiser, weights = self.teacher, self.teacher_weights
        else:
            run = open_run(self.finish(row, seed), trust=self.trust)
            denoiser, weights = open_denoiser(Place(place, "run", run), self.evaluation), run.weights
        if processes().is_main_process:
            self._evaluate(denoiser, place, self._key(weights), is_teacher=row == self.reference)
        processes().wait_for_everyone()
        return list_scores(self._stored(place)["judged"]["denoiser"])

    def render(self, results: Sequence[Result]) -> str:
        """The table, with what the scores depend on below it."""
        table = Table(("plan", "start", "methods", *(head for head, _, _ in COLUMNS.values())))
        for result in results:
            row, names = result.row, result.scores[0].keys()
            spreads = {name: result.spread(name) for name in names} if len(result.scores) > 1 else None
            table.add(row.plan, row.start, row.methods, *cells({name: result.mean(name) for name in names}, spreads))
        first = self._stored(self.place(results[0].row, self.config.seeds[0]))
        table.add("", "", f"{FLOOR} images", *cells(first["floor"]))
        seeds = ", ".join(map(str, self.config.seeds))
        table.notes += [
            f"images: {self.evaluator.images} of each, {first['judged']['denoiser']['sampling']}; SSIM and MSE to the "
            f"teacher's from the same noise; mean ± sample standard deviation over training seeds {seeds}",
            *describe_reference(first),
        ]
        return str(table)

    def draw(self, results: Sequence[Result]) -> None:
        """The first images of each row, and the error of the predicted noise by timestep."""
        data, seed = self.evaluation.data, self.config.seeds[0]
        shape = (data.channels, data.image_size, data.image_size)
        places = {_name(result.row): self.place(result.row, seed) for result in results}
        strips = {name: read_strip(place / STRIP, shape) for name, place in places.items()}
        write_grid({FLOOR: self.evaluator.real.reference, **strips}, self.folder / "images.png")
        stored = {name: self._stored(place)["judged"]["denoiser"]["errors"] for name, place in places.items()}
        curves = {name: [TimestepError(**point) for point in points] for name, points in stored.items()}
        plot_errors(curves, self.folder / "errors.png")

    @property
    def teacher_weights(self) -> Path:
        """The file that all runs share."""
        return Path(self.common.teacher.weights or "")

    @cached_property
    def teacher(self) -> TrainedDenoiser:
        """Trained first where it has no weights yet."""
        config = self.common.teacher
        experiment = DenoiserExperiment(self.common, self.folder, trust=self.trust)
        network = obtain_teacher(experiment, config, experiment.folder.teacher(MAIN))
        averaged = averaging(config.recipe.ema if config.recipe else None)
        return make_denoiser(network, f"{config.weights}, {averaged}", self.evaluation)

    @cached_property
    def images_of_teacher(self) -> Tensor:
        """From the noise that all start from."""
        return self.evaluator.generate(self.teacher, REFERENCE)

    def _key(self, weights: Path) -> dict[str, Any]:
        """All that an evaluation is a function of; files and images by their content."""
        return {
            "weights": checksum(weights),
            "teacher": checksum(self.teacher_weights),
            "extractor": self.evaluator.extractor.digest,
            "reference": self.evaluator.real.digest,
            "settings": resolved(self.evaluation),
        }

    def _evaluate(self, denoiser: TrainedDenoiser, place: Path, key: dict[str, Any], *, is_teacher: bool) -> None:
        if self._stored(place).get("key") == key:
            return
        of_teacher = self.images_of_teacher
        images = of_teacher if is_teacher else self.evaluator.generate(denoiser, place.parent.name)
        judged = self.evaluator.judge(denoiser, images, None if is_teacher else of_teacher)
        data = {"key": key, **to_json(self.evaluator.conclude({"denoiser": judged}))}
        place.mkdir(parents=True, exist_ok=True)
        write_strip(images, place / STRIP)
        write_atomically(place / FILE, json.dumps(data, indent=1).encode())

    def _stored(self, place: Path) -> dict[str, Any]:
        file = place / FILE
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return found


def _name(row: Row) -> str:
    return " ".join(filter(None, (row.plan, row.student, row.start, row.methods)))
