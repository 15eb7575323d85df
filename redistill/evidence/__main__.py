"""``redistill evidence NAME``: recompute one of the README's tables."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

from redistill.cli import run

TABLES = {
    "paper": "the paper's twelve peaks beside ours, and the optimal plan beside the paper's",
    "exactness": "predicted bytes against the meter, tolerance 0",
    "coverage": "every torchvision classifier, segmenter and detection backbone at 2x and 4x",
    "optimality": "branch and bound against exhaustive enumeration",
    "speed": "where the time of a transformation goes, and how it grows",
    "unets": "UNet denoisers, ours and diffusers', at several budgets",
    "sampling": "64 images by DDIM-50, teacher against 4x student, in turn",
    "arena": "the arena that ExecuTorch plans, byte by byte, and the file run (needs redistill[export])",
    "microcontroller": "int8 networks, plain and in parts, in TensorFlow Lite Micro (needs redistill[tflm,export])",
    "zoo": "networks of public libraries, each transformed and checked in a process of its own (zoo --help)",
    "libraries": "what people bring, from the teacher to an ONNX file, each in a process of its own",
    "fitting": "fitting a student to its teacher at 224 with 256 images: seconds, and what it gains",
    "trust": "bad inputs, strangers' files, threads, damages and kills, and what came of them (trust --help)",
    "patches": "networks run in parts: cost, regions, time, equal outputs, measured bytes (patches --help)",
    "lossless": "to which budget patches alone suffice, and what pooling must then do with and without them",
    "photographs": "students of an ImageNet network on photographs, by lever and objective (photographs --help)",
    "latency": "teachers and students at 4x called in turn, with the spread of the ratios",
}
NARROWED = ("coverage", "arena", "lossless")
"""Tables of which a part can be asked for."""
COMMANDS = ("microcontroller", "zoo", "libraries", "trust", "patches", "photographs")
"""Tables with options of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute and print a table."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        return int(import_module(f"redistill.evidence.{words[0]}").main(words[1:]))
    parser = argparse.ArgumentParser(
        prog="redistill evidence",
        description="Recompute a table of the README.",
        epilog="\n".join(f"  {name:15} {text}" for name, text in TABLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("names", nargs="*", help=f"{', '.join(NARROWED)}: only models whose name contains one of these")
    given = parser.parse_args(words)
    started = time.perf_counter()
    warnings.filterwarnings("ignore", module="torchvision|diffusers")
    make_table = import_module(f"redistill.evidence.{given.table}").run
    table = make_table(given.names) if given.table in NARROWED else make_table()
    sys.stdout.write(f"{table}\n\n{time.perf_counter() - started:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
