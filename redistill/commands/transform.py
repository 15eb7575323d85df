"""``redistill transform``: a model and a budget in, a student and its report out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from redistill.cli import CONVENTION_HELP, MODEL_HELP, add_model_options, load, positive, run, write_json
from redistill.compiler.pipeline import transform
from redistill.compiler.request import LEVERS, MAX_EXTRA_MACS
from redistill.data.calibration import find_preparation, override, read_calibration
from redistill.errors import ModelError, PlanError
from redistill.internal.places import check_makeable, check_writable
from redistill.memory.meter import measure
from redistill.models.red_block import INITS
from redistill.planning.objectives import OBJECTIVES
from redistill.recipe import check_place
from redistill.report import plot, to_json, write_page
from redistill.student import Student

EXAMPLES = """examples:
  redistill transform --budget 4x
  redistill transform --model "torchvision:mobilenet_v2?num_classes=10" --budget 512KiB --output student
  redistill transform --model torchvision:mobilenet_v2 --budget 4x --levers patches   (the same outputs)
  redistill transform --model torchvision:resnet18 --factors 4,2,2,2,1 --taps auto   (the paper's, RED blocks too)
  redistill transform --model redistill:ddpm_unet --budget 1.13MiB --html report.html

exit codes: 0 done, 2 something given cannot be used, 3 no plan fits the budget"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="redistill transform",
        description="Rewrite a network into a student that fits a budget of peak activation memory.",
        epilog=f"{MODEL_HELP}\n\n{CONVENTION_HELP}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("the student")
    group.add_argument("--budget", default="4x", help="4x, 25%%, 512KiB, 0.5MB or bytes (default: %(default)s)")
    group.add_argument(
        "--objective", default="macs", metavar="|".join((*OBJECTIVES, "package.module:Name")),
        help="macs: keep the most computation; earliest: pool in the stem, as the paper does; fidelity: agree best "
        "with the teacher on the pictures of --calibration (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--levers", default="pool", metavar=",".join(LEVERS),
        help="by what the budget is met: patches run part of the network piece by piece, with the same outputs; resize "
        "makes the image smaller; pool makes grids coarser; with patches and another, the other does what patches "
        "cannot (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-extra-macs", type=float, default=MAX_EXTRA_MACS, metavar="SHARE",
        help="the most that patches may compute more (default: %(default)s, a quarter)",
    )  # fmt: skip
    group.add_argument("--factors", metavar="4,2,2,2,1", help="explicit pooling factors by stage, instead of a budget")
    group.add_argument(
        "--taps",
        default="none",
        metavar="none|auto|FILE",
        help="RED blocks for the method red; auto: where the paper has them (default: %(default)s)",
    )
    group.add_argument(
        "--init", choices=INITS, default="gentle",
        help="how RED blocks start: gentle near the identity, default as in the paper; light: a cheaper block "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--pass", dest="passes", action="append", default=[], metavar="package.module:Name",
        help="a torch.fx pass of your own, run after ours and verified; repeatable",
    )  # fmt: skip
    group.add_argument("--reorder", action="store_true", help="first put operations into the order of least memory")
    add_model_options(parser)
    add_calibration_options(parser)
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="DIR", help="save the student here (recipe and safetensors)")
    group.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="the result as JSON, to a file or standard output"
    )
    group.add_argument("--plot", metavar="FILE.png", help="memory over layers, teacher and student, as a picture")
    group.add_argument("--html", metavar="FILE.html", help="the same as a page with an interactive timeline")
    group.add_argument(
        "--measure", action="store_true", help="also run the student under the meter, to check the figure"
    )
    return parser


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which pictures a student is fitted to, and how they are prepared."""
    group = parser.add_argument_group("pictures to fit the student to, without labels")
    group.add_argument("--calibration", metavar="FOLDER", help="pictures, in the folder or below")
    group.add_argument("--pictures", type=positive, default=256, metavar="N", help="at most (default: %(default)s)")
    group.add_argument(
        "--resize", type=positive, metavar="SIDE",
        help="shorter side before the central crop (default: the model's own, else 8/7 of the input's)",
    )  # fmt: skip
    group.add_argument("--mean", metavar="0.485,0.456,0.406", help="of each channel (default: the model's own)")
    group.add_argument("--std", metavar="0.229,0.224,0.225", help="of each channel (default: the model's own)")
    group.add_argument(
        "--time-limit", type=positive, default=600, metavar="SECONDS",
        help="fidelity tries no further plan after these (default: %(default)s)",
    )  # fmt: skip


def calibration_of(given: argparse.Namespace, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """The pictures asked for, as inputs of the model; None if there are none.

    Raises:
        DataError, ModelError: they cannot be read, or the model takes none.
    """
    if given.calibration is None:
        return None
    if len(inputs) > 1:
        raise ModelError(
            f"{given.model} takes {len(inputs)} inputs, not pictures alone; use transform(calibration=...)"
        )
    preparation = override(find_preparation(given.model, model), given.resize, given.mean, given.std)
    return read_calibration(given.calibration, inputs[0], preparation, given.pictures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    check_writable(given.json, given.plot, given.html)
    if given.output is not None:
        check_makeable(given.output)
        check_place(Path(given.output))
    factors = None if given.factors is None else _factors(given.factors)
    model, inputs, weights = load(given)
    student = transform(
        model, inputs, given.budget, given.convention, given.objective, given.taps, factors,
        dtype=given.dtype, init=given.init, reorder=given.reorder, passes=given.passes,
        levers=given.levers, max_extra_macs=given.max_extra_macs,
        model=given.model, weights=weights,
        calibration=calibration_of(given, model, inputs), time_limit=given.time_limit,
    ).eval()  # fmt: skip
    comparison = Student.comparison(student)
    if given.output:
        Student.save(student, given.output)
    if given.plot:
        plot(comparison, given.plot)
    if given.html:
        write_page(comparison, given.html)
    if given.json:
        write_json(to_json(comparison), given.json)
    if given.json != "-":
        sys.stdout.write(Student.report(student) + "\n")
        for name, path in (("student", given.output), ("plot", given.plot), ("page", given.html), ("json", given.json)):
            if path:
                sys.stdout.write(f"{name} written to {path}\n")
    if given.measure:
        sys.stderr.write(f"measured while running the student as it is: {measure(student, inputs):,} bytes (graph)\n")
    return 0


def _factors(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PlanError(f"cannot read the factors {text!r}; write whole numbers like 4,2,2,2,1") from error


if __name__ == "__main__":
    sys.exit(run(main))
