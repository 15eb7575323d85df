"""``redistill gallery``: any number of students beside their teachers, as a picture and a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from redistill.cli import MODEL_HELP, add_trust_option, run
from redistill.errors import RedistillError
from redistill.internal.places import check_absent, check_writable
from redistill.internal.tables import align_columns
from redistill.internal.text import format_bytes
from redistill.studies.gallery.accuracies import FORM, read_accuracies
from redistill.studies.gallery.entries import Entry, collect
from redistill.studies.gallery.page import write_gallery
from redistill.studies.gallery.picture import draw_gallery

DESCRIPTION = """Draw memory against accuracy (the paper's Figure 1) and memory over the layers, teacher and student
overlaid (its Figure 7), for any models. A model's student is made for the budget; a student's folder, or that of a run,
shows the student it holds, and a run its accuracies too."""

EXAMPLES = """examples:
  redistill gallery torchvision:resnet18 torchvision:mobilenet_v2 --budget 4x
  redistill gallery runs/a runs/b --output gallery.png --html gallery.html
  redistill gallery student torchvision:resnet50 --accuracies known.csv --html gallery.html"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="redistill gallery",
        description=DESCRIPTION,
        epilog=f"{MODEL_HELP}\n\naccuracies, in percent:\n  {FORM}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subjects", nargs="+", metavar="MODEL|FOLDER", help="models, students' folders, runs' folders")
    parser.add_argument("--budget", default="4x", help="of the students of models (default: %(default)s)")
    parser.add_argument("--input", metavar="CxHxW", help="input shape of the models (default: each model's own)")
    parser.add_argument("--accuracies", metavar="FILE", help="top-1 by model, CSV or JSON; before what a run says")
    add_trust_option(parser)
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", metavar="FILE.png", help="the picture (default: gallery.png, without --html)")
    group.add_argument("--html", metavar="FILE.html", help="the page, self-contained")
    group.add_argument("--force", action="store_true", help="write over files that exist")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    given = build_parser().parse_args(arguments)
    picture = given.output or (None if given.html else "gallery.png")
    check_writable(picture, given.html)
    if not given.force:
        check_absent(picture, given.html)
    known = read_accuracies(given.accuracies) if given.accuracies else {}
    entries, refused = collect(
        given.subjects, given.budget, given.input, known, progress=sys.stderr.isatty(), trust=given.trust
    )
    _check_used(known, entries, refused)
    if picture:
        draw_gallery(entries, picture)
    if given.html:
        write_gallery(entries, given.html, refused)
    sys.stdout.write(render(entries))
    for name, reason in refused.items():
        sys.stderr.write(f"left out: {name}: {reason}\n")
    for name, path in (("picture", picture), ("page", given.html)):
        if path:
            sys.stdout.write(f"{name} written to {path}\n")
    return 0


def render(entries: Sequence[Entry]) -> str:
    """The figures as text."""
    rows = [["model", "teacher", "student", "less", "top-1"]]
    rows += [
        [entry.name, format_bytes(c.teacher.peak_bytes), format_bytes(c.student.peak_bytes), f"{c.ratio:.2f}x",
         entry.describe_accuracy()]
        for entry in entries
        for c in (entry.comparison,)
    ]  # fmt: skip
    return "\n".join([*align_columns(rows, "<>>>>"), ""])


def _check_used(known: Iterable[str], entries: Sequence[Entry], refused: Iterable[str]) -> None:
    """A name that nothing here has is a slip of the pen."""
    names = {name for entry in entries for name in entry.names} | set(refused)
    stray = [name for name in known if name not in names]
    if stray:
        shown = ", ".join(entry.name for entry in entries)
        raise RedistillError(f"the accuracies name {stray[0]!r}, which is not shown here; there are {shown}")


if __name__ == "__main__":
    sys.exit(run(main))
