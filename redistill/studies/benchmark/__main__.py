"""``redistill benchmark``: what a student saves, in memory, time and size, beside its teacher."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from redistill.cli import CONVENTION_HELP, MODEL_HELP, add_trust_option, positive, run, write_json
from redistill.errors import RedistillError
from redistill.internal.places import check_absent, check_writable
from redistill.studies.benchmark.backends import BACKENDS
from redistill.studies.benchmark.measuring import Options, benchmark
from redistill.studies.benchmark.pair import Pair, make_pair, read_pair
from redistill.studies.benchmark.plots import plot
from redistill.studies.benchmark.results import to_json
from redistill.studies.benchmark.tables import render

DDPM_STEPS = 1000
ALL = "all"

DESCRIPTION = """Compare a student with its teacher in one process: peak activation memory by convention and as
measured, multiply-accumulates, parameters, size of the weights, the part of the RED blocks, and latency on every
backend that is installed. Teacher and student are called in turn, so that what disturbs the machine disturbs both."""

EXAMPLES = """examples:
  redistill benchmark runs/digits/smoke           (a run's student; a student's own folder will do too)
  redistill benchmark --model torchvision:mobilenet_v2 --budget 4x --backends eager        (seconds)
  redistill benchmark student --batches 1,32 --threads 1 --json result.json --plot result.png
  redistill benchmark --model redistill:ddpm_unet --budget 1.13MiB --steps 100   (per step and per image)"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    backends = "\n".join(f"  {name:12} {backend.title}" for name, backend in BACKENDS.items())
    parser = argparse.ArgumentParser(
        prog="redistill benchmark",
        description=DESCRIPTION,
        epilog=f"backends:\n{backends}\n\n{MODEL_HELP}\n\n{CONVENTION_HELP}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", metavar="STUDENT_DIR", help="a student's folder, or that of a run")
    group = parser.add_argument_group("the student, where no folder is given")
    group.add_argument(
        "--model", metavar="SPEC", help="the teacher (default: the folder's own, torchvision:resnet50 without a folder)"
    )
    group.add_argument("--budget", metavar="4x", help="make the student for this budget (default: 4x)")
    group.add_argument("--input", metavar="CxHxW", help="input shape (default: the model's)")
    group.add_argument("--weights", metavar="FILE", help="the teacher's state dict, 'pretrained' or 'random'")
    group.add_argument("--convention", metavar="NAME", help="of the budget (default: deploy)")
    add_trust_option(parser)
    group = parser.add_argument_group("what to time")
    group.add_argument(
        "--backends", type=backend_names, default=ALL, metavar="A,B",
        help="by name; all times those that can be had, compiling takes minutes (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--batches", type=batch_sizes, default=(1, 8), metavar="1,8", help="batch sizes (default: 1,8)")
    group.add_argument(
        "--repeats", type=positive, default=50, metavar="N", help="pairs of calls (default: %(default)s)"
    )
    group.add_argument(
        "--seconds", type=float, default=10.0, metavar="S",
        help="per backend and batch size: fewer pairs when these are over, five at least (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--threads", type=positive, metavar="N", help="of the CPU (default: PyTorch's)")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    group.add_argument(
        "--steps", type=positive, metavar="N", help=f"runs per image, of a denoiser (default: {DDPM_STEPS})"
    )
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="the result as JSON, to a file or standard output"
    )
    group.add_argument("--plot", metavar="FILE.png", help="the result as a picture")
    group.add_argument("--force", action="store_true", help="write over files that exist")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    check_writable(given.json, given.plot)
    if not given.force:
        check_absent(given.json, given.plot)
    options = Options(
        None if given.backends == ALL else given.backends, given.batches, given.repeats, given.seconds, given.threads,
        given.device,
    )  # fmt: skip
    options.check()
    pair = _obtain(given)
    options = replace(options, steps=_steps(given.steps, pair))
    result = benchmark(pair, options, progress=sys.stderr.isatty())
    if given.plot:
        plot(result, given.plot)
    if given.json:
        write_json(to_json(result), given.json)
    if given.json != "-":
        sys.stdout.write(render(result))
    return 0


def _obtain(given: argparse.Namespace) -> Pair:
    """The pair of a folder, or one made on the fly."""
    making = {name: getattr(given, name) for name in ("budget", "input", "weights", "convention")}
    if given.folder is None:
        return make_pair(
            given.model or "torchvision:resnet50", given.budget or "4x", given.weights, given.input,
            given.convention or "deploy",
        )  # fmt: skip
    asked = [name for name, value in making.items() if value is not None]
    if asked:
        raise RedistillError(f"--{asked[0]} makes a student, and {given.folder} holds one already; give one of the two")
    return read_pair(given.folder, given.model, given.trust)


def _steps(steps: int | None, pair: Pair) -> int | None:
    if pair.is_denoiser:
        return steps or DDPM_STEPS
    if steps is not None:
        raise RedistillError(f"--steps is for denoisers; {pair.model} takes no timestep and is run once per image")
    return None


def backend_names(text: str) -> tuple[str, ...] | str:
    """An argparse type: ``all``, or names between commas."""
    return text if text == ALL else tuple(part.strip() for part in text.split(","))


def batch_sizes(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers from 1 on between commas."""
    return tuple(positive(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(run(main))
