"""``redistill evaluate``: how good a denoiser's images are, with all that the scores depend on."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from redistill.cli import add_trust_option, positive, run, write_json
from redistill.config.files import override, read
from redistill.internal.places import check_writable
from redistill.studies.evaluation.evaluating import Evaluation, EvaluationConfig, Evaluator
from redistill.studies.evaluation.loading import open_denoiser, open_teacher
from redistill.studies.evaluation.paths import Place, find
from redistill.studies.evaluation.pictures import read_folder
from redistill.studies.evaluation.report import render, to_json, write_grid
from redistill.studies.evaluation.timesteps import plot_errors

DESCRIPTION = """Score a denoiser, or a folder of images, against real images.

FID, KID, IS, precision and recall come from torch-fidelity; a denoiser's error by timestep and, for a student, SSIM and
MSE to its teacher's images from the same noise are computed beside them. Each score is printed with the floor that
real images reach against real ones, and with extractor, reference, sampler, steps, weights and seed."""

EPILOG = """scores:
  FID, KID           distance of the images' features from those of real ones; less is better; both fall with -n
  IS                 how sure and how varied the extractor's classes are; more is better
  precision, recall  share of images among the real ones, and of real ones among the images; more is better
  SSIM, MSE          to the teacher's images; 1 and 0 where they are the same
  Compare with the row "real", and only scores of the same extractor, reference, -n, sampler and steps.

what is evaluated:
  a run of redistill.trainers.denoiser (its student, or the teacher that it trained), best.safetensors or a checkpoint
  in it, a student's folder, or a folder of PNG or JPEG images (then name the data set by --data)

extractors:
  without --extractor, a small classifier is trained on the data set (once; minutes) and its 64 features are used:
  right for images that are no photographs
  FILE.pth           torch-fidelity's weights-inception-2015-12-05-6726825d.pth: the Inception of published scores
  FILE.safetensors   a classifier that was trained so before

settings (--set):
  generation.guidance and .batch, points and held_out of the error by timestep, recipe.steps of the classifier, data

examples:
  redistill evaluate runs/fashion_mnist/ddpm -n 1000 --plot errors.png --grid images.png
  redistill evaluate runs/cifar10/ddpm -n 50000 --extractor weights-inception-2015-12-05-6726825d.pth
  redistill evaluate my_images --data cifar10 --set data.root=/data -n 10000 --json scores.json"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="redistill evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", metavar="FOLDER", help="a run, a checkpoint, a student or images; see below")
    group = parser.add_argument_group("the scores")
    group.add_argument("--data", metavar="NAME", help="data set of the reference (default: the run's)")
    group.add_argument(
        "-n",
        "--images",
        type=positive,
        metavar="N",
        help="images to generate (default: 1000), or of a folder (default: all)",
    )
    group.add_argument("--reference", choices=("train", "test"), help="split of the reference (default: train)")
    group.add_argument("--reference-size", type=positive, metavar="N", help="images of the reference (default: as -n)")
    group.add_argument("--extractor", metavar="FILE", help="see below")
    group.add_argument("--sampler", choices=("ddim", "ddpm"), help="default: ddim")
    group.add_argument("--steps", type=positive, metavar="N", help="timesteps that are visited (default: 50)")
    group.add_argument("--seed", type=int, help="of the initial noise (default: 0)")
    group.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="any setting, as data.root=/data"
    )
    add_trust_option(parser)
    group = parser.add_argument_group("what to write")
    group.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the scores, to a file or standard output")
    group.add_argument("--plot", metavar="FILE.png", help="the error of the predicted noise by timestep")
    group.add_argument("--grid", metavar="FILE.png", help="the first images, above those of the teacher")
    return parser


def read_config(given: argparse.Namespace, place: Place) -> EvaluationConfig:
    """The run's data and diffusion, changed by what is given."""
    flags = {
        "data.name": given.data,
        "images": given.images,
        "reference": given.reference,
        "reference_size": given.reference_size,
        "extractor": given.extractor,
        "generation.sampler": given.sampler,
        "generation.steps": given.steps,
        "generation.seed": given.seed,
    }
    chosen = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return read(EvaluationConfig, override(place.settings(), [*chosen, *given.set]))


def evaluate(place: Place, config: EvaluationConfig) -> tuple[Evaluation, dict[str, Tensor]]:
    """The scores of what is at a place, and the images: of itself, and of its teacher where it has one."""
    if place.kind == "images":
        pixels = read_folder(place.path, config.data, config.images)
        evaluator = Evaluator(config, len(pixels))
        return evaluator.conclude({"images": evaluator.judge_images(pixels, str(place.path))}), {"images": pixels}
    denoiser, teacher = open_denoiser(place, config), open_teacher(place, config)
    evaluator = Evaluator(config)
    name = "denoiser" if teacher is None else "student"
    if teacher is None:
        images = {name: evaluator.generate(denoiser, name)}
        return evaluator.conclude({name: evaluator.judge(denoiser, images[name])}), images
    images = {"student": evaluator.generate(denoiser, name), "teacher": evaluator.generate(teacher, "teacher")}
    judged = {
        "student": evaluator.judge(denoiser, images["student"], images["teacher"]),
        "teacher": evaluator.judge(teacher, images["teacher"]),
    }
    return evaluator.conclude(judged), images


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    check_writable(given.json, given.plot, given.grid)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("redistill").setLevel(logging.INFO)
    place = find(Path(given.subject), given.trust)
    evaluation, images = evaluate(place, read_config(given, place))
    if given.plot:
        plot_errors({name: judged.errors for name, judged in evaluation.judged.items()}, given.plot)
    if given.grid:
        write_grid(images, given.grid)
    if given.json:
        write_json(to_json(evaluation), given.json)
    if given.json != "-":
        sys.stdout.write(render(evaluation) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
