"""Compare methods on one experiment: every plan, start and method, over several seeds, as one table.

    redistill compare --config fashion_mnist/comparison.yaml --set data.root=/data
    redistill compare --config fashion_mnist/ddpm_comparison-cpu.yaml --set data.root=/data

Finished runs are kept and stopped ones continued, so the command can be repeated until all is done; with --table it
makes the table of what is done. The teacher is
trained once. Classifiers are compared by their accuracy: the reference is the teacher's architecture given the same
extra epochs, and the gap is what the plain student from scratch lacks of that. Denoisers are compared by their images:
the reference is the teacher, and real images set the floor.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from redistill.cli import add_trust_option, positive, run
from redistill.config.files import find_trainer, load, packaged, read_file
from redistill.errors import ConfigError
from redistill.studies.comparison.classifiers import AccuracyJudge
from redistill.studies.comparison.making import TABLE, compare, finish_together
from redistill.studies.comparison.runs import ComparisonConfig, Judge
from redistill.trainers.acceleration import leave_processes, processes


def read_comparison(name: str, assignments: Sequence[str]) -> ComparisonConfig:
    """A comparison's file; what is set and is no key of it is set in all of its runs."""
    known = {field.name for field in dataclasses.fields(ComparisonConfig)}
    own = [text for text in assignments if text.partition("=")[0].partition(".")[0] in known]
    config = load(ComparisonConfig, name, own)
    if not config.seeds:
        raise ConfigError("seeds: give one or more")
    others = tuple(text for text in assignments if text not in own)
    return dataclasses.replace(config, settings=(*config.settings, *others))


def choose_judge(config: ComparisonConfig, folder: Path, trust: bool = False) -> Judge:
    """The judge of the experiment's trainer."""
    if find_trainer(read_file(config.experiment)) != "denoiser":
        return AccuracyJudge(config, folder, trust=trust)
    from redistill.studies.comparison.denoisers import ImageJudge

    return ImageJudge(config, folder, trust=trust)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(_main, arguments)


def _main(arguments: Sequence[str] | None) -> int:
    comparisons = "\n".join(f"  {name:40} {text}" for name, text in packaged("comparison").items())
    parser = argparse.ArgumentParser(
        prog="redistill compare",
        description=__doc__,
        epilog=f"comparisons (--config):\n{comparisons}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="fashion_mnist/comparison.yaml", help="a comparison; %(default)s")
    parser.add_argument("--folder", default="runs/comparison", help="where runs and table go; %(default)s")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A=VALUE",
        help="change one setting of the comparison (seeds=[0]) or of all its runs (data.root=/data); repeatable",
    )
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time; %(default)s")
    parser.add_argument(
        "--table", action="store_true", help="run nothing: make table and plot of the runs that are done"
    )
    add_trust_option(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("redistill").setLevel(logging.INFO)
    try:
        judge = choose_judge(read_comparison(options.config, options.set), Path(options.folder), options.trust)
        judge.check()
        if options.jobs > 1 and not options.table:
            finish_together(judge, options.jobs)
        compare(judge, only_finished=options.table)
    finally:
        leave_processes()
    if processes().is_main_process:
        sys.stdout.write((judge.folder / TABLE).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
