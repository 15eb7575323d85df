"""What the trainers' command lines share: options, messages, exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.cli import add_trust_option
from redistill.cli import run as guarded
from redistill.config.files import load, packaged
from redistill.config.settings import ExperimentConfig
from redistill.distillation import METHODS
from redistill.errors import RedistillError
from redistill.trainers.acceleration import leave_processes, processes, warn_of_missing_processes
from redistill.trainers.experiment import Experiment
from redistill.trainers.running import render, run


@dataclass(frozen=True)
class Command:
    """A trainer's command line.

    Attributes:
        name: the trainer, as in ``redistill.trainers.NAME``.
        description: what ``--help`` says first.
        default: the experiment that is run where none is named.
        kind: the class of its configuration.
        experiment: makes the experiment from configuration and folder.
        notes: more for ``--list``.
        without: methods that do not suit the trainer, which ``--list`` leaves out.
        word: the command, as in ``redistill WORD``.
    """

    name: str
    description: str | None
    default: str
    kind: type[ExperimentConfig]
    experiment: type[Experiment[Any]]
    notes: str = ""
    without: frozenset[str] = frozenset()
    word: str = "train"

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command and return its exit code."""
        return guarded(self._main, arguments)

    def _main(self, arguments: Sequence[str] | None) -> int:
        options = self._parse(arguments)
        if options.list:
            sys.stdout.write(self.listing() + "\n")
            return 0
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("redistill").setLevel(logging.INFO if _is_first() else logging.ERROR)
        warn_of_missing_processes(self.name)
        try:
            config = load(self.kind, options.config, options.set)
            folder = Path(config.run.folder or Path("runs") / Path(options.config).with_suffix(""))
            experiment = self.experiment(config, folder, trust=options.trust)
            summary = run(experiment, resume=options.resume)
        except OSError as error:
            raise RedistillError(f"{error}; make room, or set run.folder to a place that can be written") from error
        finally:
            leave_processes()
        if processes().is_main_process:
            sys.stdout.write(render(experiment, summary) + "\n")
        return 0

    def listing(self) -> str:
        """The packaged experiments and the methods."""
        experiments = "\n".join(f"  {name:34} {text}" for name, text in packaged(self.name).items())
        methods = "\n".join(
            f"  {name:10} {_first_line(kind)}" for name, kind in METHODS.items() if name not in self.without
        )
        parts = (
            f"experiments (--config):\n{experiments}",
            self.notes,
            f"methods (--set distillation.methods=...):\n{methods}",
        )
        return "\n\n".join(filter(None, parts))

    def _parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            prog=f"redistill {self.word}",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--config", default=self.default, help="a packaged experiment (see --list) or a path; %(default)s"
        )
        parser.add_argument(
            "--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; repeatable"
        )
        parser.add_argument("--resume", action="store_true", help="continue the run in its folder")
        add_trust_option(parser)
        parser.add_argument("--list", action="store_true", help="show the packaged experiments and methods, and stop")
        return parser.parse_args(arguments)


def _first_line(kind: type) -> str:
    return (sys.modules[kind.__module__].__doc__ or "").splitlines()[0]


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
