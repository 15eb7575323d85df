"""``redistill COMMAND`` and ``python -m redistill COMMAND``: every command of the library by one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from redistill.internal.boundary import run

COMMANDS = {
    "transform": ("redistill.commands.transform", "rewrite a network into a student that fits a budget"),
    "profile": ("redistill.commands.profile", "show where a network's activation memory goes"),
    "train": ("redistill.trainers.classifier", "distil a classifier into its student"),
    "train-denoiser": ("redistill.trainers.denoiser", "distil a denoiser into its student"),
    "compare": ("redistill.studies.comparison.__main__", "compare methods, plans and seeds as one table"),
    "evaluate": ("redistill.studies.evaluation.__main__", "score a denoiser's images"),
    "export": ("redistill.export.__main__", "write the file that a device runs"),
    "benchmark": ("redistill.studies.benchmark.__main__", "measure a student beside its teacher"),
    "gallery": ("redistill.studies.gallery.__main__", "draw any number of students beside their teachers"),
    "evidence": ("redistill.evidence.__main__", "recompute a table of the documentation"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; its options follow."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"{import_module('redistill').__version__}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"error: no command {name!r}; one of {', '.join(COMMANDS)}\n")
        return 2
    return run(lambda given: int(import_module(COMMANDS[name][0]).main(given)), rest)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items())
    return f"usage: redistill COMMAND [options]\n\n{rows}\n\nredistill COMMAND --help tells a command's options.\n"


if __name__ == "__main__":
    sys.exit(main())
