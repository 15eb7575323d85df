"""``redistill evidence zoo``: try the networks, keep what was found, print a summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from redistill.cli import positive
from redistill.evidence.zoo import catalogue, isolation
from redistill.evidence.zoo.results import Results, Row, listing, refusals, summary
from redistill.evidence.zoo.trial import try_network


def main(arguments: Sequence[str] | None = None) -> int:
    """Try each selected network that has no row yet, then print the summary and what failed."""
    given = _parser().parse_args(arguments)
    selected = catalogue.select(given.library, given.only, given.limit)
    for library in dict.fromkeys(e.library for e in selected if not catalogue.is_installed(e.library)):
        sys.stdout.write(f"{library} is not installed: its networks are left out\n")
    wanted = [e for e in selected if catalogue.is_installed(e.library)]
    results = Results(Path(given.folder))
    _try_all([e for e in wanted if (e.library, e.name) not in results.rows], results, given)
    rows = [results.rows[e.library, e.name] for e in wanted if (e.library, e.name) in results.rows]
    overview = f"{summary(rows)}\n\n{refusals(rows)}"
    sys.stdout.write(f"{overview}\n\n{listing(r for r in rows if r.outcome != 'verified')}\n")
    if given.markdown:
        Path(given.markdown).write_text(f"{overview}\n\n{listing(rows)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="redistill evidence zoo", description=__doc__)
    parser.add_argument("--folder", default="runs/zoo", help="where rows are kept (default: %(default)s)")
    parser.add_argument("--library", action="append", default=[], help=f"one of {', '.join(catalogue.libraries())}")
    parser.add_argument("--only", metavar="PATTERN", help="networks whose spec this regular expression finds")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N networks of each library")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="networks at a time (default: 1)")
    parser.add_argument("--seconds", type=positive, default=60, help="of one processor (default: %(default)s)")
    parser.add_argument("--memory", type=positive, default=16, metavar="GIB", help="address space (default: 16)")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there as well")
    return parser


def _try_all(entries: Sequence[catalogue.Entry], results: Results, given: argparse.Namespace) -> None:
    packages = dict.fromkeys(catalogue.package_of(e.library) for e in entries)
    isolation.prepare(["redistill.evidence.zoo.trial", *packages])
    limits = isolation.Limits(given.seconds, given.memory * 2**30)
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in tqdm(pool.map(partial(_try, limits), entries), total=len(entries), unit="network", leave=False):
            results.add(row)


def _try(limits: isolation.Limits, entry: catalogue.Entry) -> Row:
    ended = isolation.call(try_network, entry, limits)
    if ended.result is not None:
        return Row(**ended.result)
    outcome = "out of time" if ended.death == "out of time" else "died"
    return Row(entry.library, entry.name, outcome, reason=ended.death)
