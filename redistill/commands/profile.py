"""``redistill profile``: where a model's activation memory goes, and whether the figure can be trusted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from redistill.cli import CONVENTION_HELP, MODEL_HELP, add_model_options, load, run, write_json
from redistill.internal.places import check_writable
from redistill.internal.text import format_shapes
from redistill.memory.meter import measure
from redistill.memory.profiling import profile
from redistill.report import plot_profile, profile_to_json, render_profile, write_profile_page

EXAMPLES = """examples:
  redistill profile --model torchvision:mobilenet_v2 --measure
  redistill profile --model package.module:function --input 3x96x96 --convention arena --html memory.html"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="redistill profile",
        description="Profile the activation memory of one inference run: the peak, what is alive there, the timeline.",
        epilog=f"{MODEL_HELP}\n\n{CONVENTION_HELP}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    group = parser.add_argument_group("what to write")
    group.add_argument("--measure", action="store_true", help="also run the model under the meter and compare (eager)")
    group.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="the profile as JSON, to a file or standard output"
    )
    group.add_argument("--plot", metavar="FILE.png", help="memory over layers as a picture")
    group.add_argument("--html", metavar="FILE.html", help="the same as a page with an interactive timeline")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    check_writable(given.json, given.plot, given.html)
    model, inputs, weights = load(given)
    found = profile(model, inputs, given.convention, given.dtype)
    title = f"{given.model} at {format_shapes(inputs)}"
    if given.plot:
        plot_profile(found, given.plot)
    if given.html:
        write_profile_page(found, title, given.html)
    if given.json:
        write_json(profile_to_json(found), given.json)
    if given.json != "-":
        sys.stdout.write(render_profile(found, title) + "\n")
    if given.measure:
        predicted, measured = profile(model, inputs, "eager").peak_bytes, measure(model, inputs)
        verdict = "equal" if predicted == measured else f"{measured - predicted:+,} bytes"
        sys.stderr.write(
            f"eager: predicted {predicted:,} bytes, measured {measured:,} bytes ({verdict}); weights: {weights}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
