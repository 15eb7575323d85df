"""``redistill export``: a student or a teacher in, a file that runs on a device out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import redistill
from redistill import recipe
from redistill.cli import (
    CONVENTION_HELP,
    MODEL_HELP,
    add_model_options,
    add_trust_option,
    load,
    positive,
    run,
    write_json,
)
from redistill.errors import ExportError, StudentError
from redistill.export.calibration import calibration_batches
from redistill.export.exporting import check_free, check_quantized, export
from redistill.export.formats import FORMATS, format_named
from redistill.export.metadata import describe_data, describe_inputs, find_experiment
from redistill.export.preparation import make_int8, prepare
from redistill.export.rendering import render, to_json
from redistill.internal.places import check_writable
from redistill.memory.conventions import DEPLOY, Convention, find_convention
from redistill.models import example_inputs, load_model
from redistill.models.specs import require_trust
from redistill.quantization.files import load_program
from redistill.student import Student, record_of
from redistill.trainers.folder import RunFolder, find_student

EXAMPLES = """examples:
  redistill export runs/digits/smoke/student --format executorch-portable
  redistill export runs/digits/smoke/student --format executorch --quantize int8
  redistill export --model torchvision:resnet18 --format onnx --output resnet18.onnx
  redistill export student --format pt2 --quantize int8 --calibration photographs/

A file is run in its own runtime and compared with the network before it is written; one that differs is refused.
exit codes: 0 done, 2 something given cannot be used"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    formats = "\n".join(f"  {f.name:20} {f.about}" for f in FORMATS.values())
    parser = argparse.ArgumentParser(
        prog="redistill export",
        description="Export a student, or any model, to a file that runs elsewhere, its parity and memory checked.",
        epilog=f"formats:\n{formats}\n\n{MODEL_HELP}\n\n{CONVENTION_HELP}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("student", nargs="?", metavar="STUDENT_DIR", help="a saved student, or the folder of its run")
    group = parser.add_argument_group("the file")
    group.add_argument("--format", choices=FORMATS, default="executorch", help="default: %(default)s")
    group.add_argument(
        "--output", metavar="FILE", help="default: the student's or model's name with the format's suffix"
    )
    group.add_argument("--force", action="store_true", help="replace a file that exists")
    group.add_argument("--reorder", action="store_true", help="first put operations into the order of least memory")
    group.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="the result as JSON, to a file or standard output"
    )
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--quantize",
        choices=("int8",),
        help="the int8 network that the student's run has trained; where there is none, or with --calibration, weights "
        "and activations are rounded now",
    )
    group.add_argument(
        "--calibration",
        metavar="CONFIG|FOLDER",
        help="images to measure ranges by: an experiment, of which images held out of training are taken, or a folder "
        "(default: the experiment that the student was trained by)",
    )
    group.add_argument("--samples", type=positive, default=128, metavar="N", help="images (default: %(default)s)")
    group.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change the experiment, as in data.root=/data"
    )
    add_trust_option(parser)
    add_model_options(parser, counted_as=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    chosen = format_named(given.format)
    check_quantized(chosen, given.quantize is not None)
    if find_convention(given.convention).as_written:
        raise ExportError(
            f"{given.convention} is how PyTorch itself runs, not a file; give --convention deploy or arena"
        )
    folder = find_student(Path(given.student)) if given.student else None
    experiment = find_experiment(folder, given.trust) if folder else None
    program = _int8_network(folder) if folder and given.quantize and given.calibration is None else None
    output = Path(given.output or _default_name(folder, given) + chosen.suffix)
    check_writable(str(output), given.json)
    check_free(output, force=given.force)
    trained = program.student if program else folder
    model, inputs, about = _open_student(trained, given.trust) if trained else _open_model(given)
    if experiment is not None:
        about |= describe_data(experiment.config.data)
    prepared = prepare(model, inputs, _convention(given, model), given.reorder, about)
    if given.quantize:
        images = calibration_batches(given.calibration, experiment, inputs[0], given.samples, given.set, given.trust)
        prepared = make_int8(prepared, images, load_program(program.path)[0] if program else None)
    exported = export(prepared, output, given.format, given.force)
    if given.json:
        write_json(to_json(exported, prepared, model), given.json)
    if given.json != "-":
        sys.stdout.write(render(exported, prepared, model) + "\n")
    return 0


@dataclass(frozen=True)
class Int8Network:
    """The int8 network that a run has made, and the student whose weights it has."""

    path: Path
    student: Path


def _int8_network(folder: Path) -> Int8Network | None:
    """That of the run which a student's folder is in, if it made one."""
    run = RunFolder(folder.absolute().parent)
    if folder.absolute() != run.student.absolute() or not run.program.is_file():
        return None
    trained = run.int8.student
    return Int8Network(run.program, trained if (trained / recipe.RECIPE).is_file() else folder)


def _convention(given: argparse.Namespace, model: nn.Module) -> Convention:
    """The student's own, unless another is asked for."""
    if isinstance(model, Student) and given.convention == DEPLOY.name:
        return record_of(model).provenance.request.convention
    return find_convention(given.convention)


def _default_name(folder: Path | None, given: argparse.Namespace) -> str:
    name = folder.absolute().name if folder else given.model.partition("?")[0].rpartition(":")[2]
    return f"{name}-int8" if given.quantize else name


def _open_student(folder: Path, trust: bool) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    about = recipe.read(folder)
    spec = about.get("model")
    if spec is None:
        raise StudentError(f"{folder} was made of a module that has no spec; load it with that and export it in Python")
    teacher = load_model(require_trust(spec, folder, trust), "random")
    student = redistill.load_student(folder, teacher).eval()
    inputs = example_inputs(spec, teacher, [given.shape for given in record_of(student).provenance.inputs[:1]])
    return student, inputs, {"student": about, "inputs": describe_inputs(inputs)}


def _open_model(given: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]:
    model, inputs, weights = load(given)
    return model, inputs, {"model": given.model, "weights": weights, "inputs": describe_inputs(inputs)}


if __name__ == "__main__":
    sys.exit(run(main))
