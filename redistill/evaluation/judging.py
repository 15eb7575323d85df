"""Denoisers compared by their images: a table beside the teacher and the floor, and samples from the same noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from redistill.evaluation.evaluating import EvaluationConfig, Evaluator
from redistill.evaluation.generation import TrainedDenoiser
from redistill.evaluation.loading import make_denoiser, open_denoiser
from redistill.evaluation.pictures import read_strip, write_strip
from redistill.evaluation.places import Place, averaging, open_run
from redistill.evaluation.report import FLOOR, describe_reference, to_json, write_grid
from redistill.evaluation.timesteps import TimestepError, plot_errors
from redistill.evidence.table import Table
from redistill.trainers.acceleration import processes
from redistill.trainers.checkpoint import checksum, write_atomically
from redistill.trainers.config import merge, read, resolved
from redistill.trainers.contest import ComparisonConfig, Judge, Result, Row, Scores
from redistill.trainers.denoiser import DenoiserExperiment, train
from redistill.trainers.denoiser_settings import DenoiserConfig
from redistill.trainers.teachers import obtain_teacher

REFERENCE = "the teacher"
FILE, STRIP = "evaluation.json", "images.png"
COLUMNS = {  # name of the score, its unit, digits
    "fid": ("FID", 1, 3),
    "kid": ("KID x1000", 1000, 2),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "ssim": ("SSIM", 1, 3),
    "mse": ("MSE x1000", 1000, 1),
}


class ImageJudge(Judge):
    """Scores of images from one noise in all runs, with their settings and weights in ``evaluation.json``.

    An evaluation is used again only while both are what they were.
    """

    kind = DenoiserConfig
    reference = Row("1x", "", REFERENCE, ())

    def __init__(self, config: ComparisonConfig, folder: Path) -> None:
        super().__init__(config, folder)
        self.common: DenoiserConfig = self.settings(self.reference, config.seeds[0])
        inherited = {name: resolved(getattr(self.common, name)) for name in ("data", "diffusion")}
        self.evaluation = read(EvaluationConfig, merge(inherited, dict(config.evaluation)))

    @cached_property
    def evaluator(self) -> Evaluator:
        """For all rows."""
        return Evaluator(self.evaluation)

    def train(self, settings: DenoiserConfig, place: Path, *, resume: bool) -> None:
        """Carry out one run."""
        train(settings, place, resume=resume)

    def seeds(self, row: Row) -> Sequence[int]:
        """There is one teacher."""
        return self.config.seeds[:1] if row == self.reference else self.config.seeds

    def score(self, row: Row, seed: int) -> Scores:
        """Fidelity, and nearness to the teacher's images."""
        evaluator = self.evaluator  # before anything is trained: it finds what cannot be scored
        if row == self.reference:
            place, denoiser = self.place(row, seed), self.teacher
            weights = Path(self.common.teacher.weights or "")
        else:
            place = self.finish(row, seed)
            denoiser = open_denoiser(Place(place, "run", open_run(place)), self.evaluation)
            weights = place / "student" / "weights.safetensors"
        key = {"weights": checksum(weights), "settings": resolved(self.evaluation)}
        if processes().is_main_process and self._stored(place).get("key") != key:
            of_teacher = self.images_of_teacher
            is_teacher = row == self.reference
            images = of_teacher if is_teacher else evaluator.generate(denoiser, row.name)
            judged = evaluator.judge(denoiser, images, None if is_teacher else of_teacher)
            self._store(place, images, {"key": key, **to_json(evaluator.conclude({"denoiser": judged}))})
        processes().wait_for_everyone()
        judged = self._stored(place)["judged"]["denoiser"]
        near = {name: judged[name] for name in ("ssim", "mse") if judged[name] is not None}
        return {**judged["fidelity"], **near}

    def render(self, results: Sequence[Result]) -> str:
        """The table, with what the scores depend on below it."""
        first = self._stored(self.place(results[0].row, self.config.seeds[0]))
        table = Table(("plan", "start", "methods", *(head for head, _, _ in COLUMNS.values())))
        for result in results:
            row = result.row
            table.add(row.plan, row.start, row.methods, *(_cell(result, name) for name in COLUMNS))
        floor = Result(Row("", "", "real images", ()), (first["floor"],))
        table.add("", "", f"real images ({FLOOR})", *(_cell(floor, name) for name in COLUMNS))
        table.notes += [first["judged"]["denoiser"]["sampling"], *describe_reference(first)]
        seeds = ", ".join(map(str, self.config.seeds))
        table.notes.append(
            f"mean ± sample standard deviation over training seeds {seeds}; SSIM and MSE to the teacher's"
        )
        return str(table)

    def draw(self, results: Sequence[Result]) -> None:
        """The first images of each row, and the error of the predicted noise by timestep."""
        seed, shape = self.config.seeds[0], self.teacher.shape
        places = {_name(result.row): self.place(result.row, seed) for result in results}
        strips = {name: read_strip(place / STRIP, shape) for name, place in places.items()}
        write_grid({"real": self.evaluator.real.reference, **strips}, self.folder / "images.png")
        stored = {name: self._stored(place)["judged"]["denoiser"]["errors"] for name, place in places.items()}
        curves = {name: [TimestepError(**point) for point in points] for name, points in stored.items()}
        plot_errors(curves, self.folder / "errors.png")

    @cached_property
    def teacher(self) -> TrainedDenoiser:
        """Trained first where it has no weights yet."""
        config = self.common.teacher
        network = obtain_teacher(DenoiserExperiment(self.common, self.folder), config, self.folder / "teacher")
        averaged = averaging(config.recipe.ema if config.recipe else None)
        return make_denoiser(network, f"{config.weights}, {averaged}", self.evaluation)

    @cached_property
    def images_of_teacher(self) -> Tensor:
        """From the noise that all start from."""
        return self.evaluator.generate(self.teacher, REFERENCE)

    def _store(self, place: Path, images: Tensor, data: dict[str, Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        write_strip(images, place / STRIP)
        write_atomically(place / FILE, json.dumps(data, indent=1).encode())

    def _stored(self, place: Path) -> dict[str, Any]:
        file = place / FILE
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return found


def _name(row: Row) -> str:
    return " ".join(filter(None, (row.plan, row.methods)))


def _cell(result: Result, name: str) -> str:
    if name not in result.scores[0]:
        return ""
    _, unit, digits = COLUMNS[name]
    mean, spread = unit * result.mean(name), unit * result.spread(name)
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(result.scores) > 1 else "")
