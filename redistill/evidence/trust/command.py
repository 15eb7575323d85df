"""``python -m redistill.evidence trust``: everything that is tried, counted, with each thing that went wrong."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from redistill.cli import positive
from redistill.evidence.trust.damages import damage_files
from redistill.evidence.trust.inputs import COUNTS, try_inputs
from redistill.evidence.trust.kills import WORKS, kill_works
from redistill.evidence.trust.strangers import open_strangers
from redistill.evidence.trust.threads import run_together
from redistill.internal.tables import Table

Faults = list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, print the table, and return 1 if anything went wrong."""
    given = _parser().parse_args(arguments)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # as the processes that are killed
    table, faults = Table(("tried", "how many", "what came of it", "wrong", "seconds")), Faults()
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as place:
            PARTS[part](table, faults, given, Path(place))
    sys.stdout.write("\n".join([str(table), *(["", "what went wrong:"] if faults else []), *faults]) + "\n")
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m redistill.evidence trust", description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these: {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="S", help="this share of the bad inputs; %(default)s"
    )
    parser.add_argument("--kills", type=positive, default=204, metavar="N", help="kills in all; %(default)s")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="what is killed; all")
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="each N-th damage only; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and moments; %(default)s")
    return parser


def _inputs(table: Table, faults: Faults, given: argparse.Namespace, place: Path) -> None:
    for kind, count in COUNTS.items():
        started = time.perf_counter()
        tally = try_inputs({kind: max(1, round(count * given.share))}, given.seed, place)[kind]
        came = f"{tally.tried - tally.accepted - len(tally.faults)} refused in one line, {tally.accepted} accepted"
        _add(table, faults, f"bad {kind}", tally.tried, came, tally.faults, started)


def _kills(table: Table, faults: Faults, given: argparse.Namespace, place: Path) -> None:
    for index, work in enumerate(given.works):
        started, count = time.perf_counter(), given.kills // len(given.works)
        count += index < given.kills % len(given.works)
        toll = kill_works([work], count, given.seed)[work]
        came = f"{toll.compared} finished and compared: equal to the bit, nothing half-written"
        _add(table, faults, f"kills of {work}", toll.kills, came, toll.faults, started)


def _damages(table: Table, faults: Faults, given: argparse.Namespace, place: Path) -> None:
    started, found = time.perf_counter(), damage_files(place, given.every)
    came = f"{found.equal} equal to the bit, {found.refused} refused in one line"
    _add(table, faults, "damages to files of a run", found.done, came, found.faults, started)


def _strangers(table: Table, faults: Faults, given: argparse.Namespace, place: Path) -> None:
    started, opened = time.perf_counter(), open_strangers(place)
    wrong = [*(f"{name}: ran its code" for name in opened.ran), *opened.faults]
    _add(table, faults, "strangers' files", opened.tried, f"{len(opened.ran)} ran code", wrong, started)


def _threads(table: Table, faults: Faults, given: argparse.Namespace, place: Path) -> None:
    started, shared = time.perf_counter(), run_together()
    _add(table, faults, "calls beside others, and in contexts", shared.tried, "as alone", shared.faults, started)


def _add(table: Table, faults: Faults, what: str, tried: int, came: str, wrong: Faults, started: float) -> None:
    table.add(what, f"{tried:,}", came, len(wrong), f"{time.perf_counter() - started:.0f}")
    faults += [f"{what}: {fault}" for fault in wrong]


PARTS: dict[str, Callable[[Table, Faults, argparse.Namespace, Path], None]] = {
    "inputs": _inputs,
    "strangers": _strangers,
    "threads": _threads,
    "damages": _damages,
    "kills": _kills,
}
