"""What the command lines share: model and input options, one-line errors, output paths checked before the work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill.errors import RedistillError
from redistill.internal.boundary import run as run
from redistill.internal.files import write_atomically
from redistill.memory.conventions import CONVENTIONS, DEPLOY
from redistill.memory.recording import ITEM_SIZES
from redistill.models import example_inputs, find_weights, load_model, parse_shape

CONVENTION_HELP = "conventions of peak memory (bytes of activations alive at once; weights never count):\n" + "\n".join(
    f"  {name:<8}{convention.about}{' (default)' * (convention is DEPLOY)}" for name, convention in CONVENTIONS.items()
)

MODEL_HELP = """models:
  torchvision:NAME, timm:NAME, diffusers:CLASS, redistill:NAME, package.module:function
  keyword arguments as a query: "torchvision:mobilenet_v2?num_classes=10&width_mult=0.35" """


def add_model_options(parser: argparse.ArgumentParser, counted_as: bool = True) -> None:
    """The options that say which model, with which weights and inputs, counted how (``counted_as``: in which type)."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default="torchvision:resnet50", metavar="SPEC", help="default: %(default)s")
    group.add_argument(
        "--input",
        action="append",
        metavar="CxHxW",
        help="input shape, batch may be given; repeatable (default: the model's)",
    )
    group.add_argument("--batch", type=positive, default=1, metavar="N", help="batch size (default: %(default)s)")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="state dict (.pth, .safetensors); 'pretrained' downloads, 'random' does not look",
    )
    if counted_as:
        group.add_argument(
            "--dtype", choices=sorted(ITEM_SIZES), help="count activations in this type (default: as they are)"
        )
    words = "|".join((*CONVENTIONS, "package.module:Name"))
    group.add_argument("--convention", metavar=words, default="deploy", help="default: %(default)s")
    group.add_argument("--seed", type=int, default=0, help="of random weights (default: %(default)s)")


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """The option that lets files name models to import."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import models that a configuration, a run or a student's folder names as package.module:function; "
        "that runs their code",
    )


def load(arguments: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """The model, its example inputs, and where its weights come from."""
    torch.manual_seed(arguments.seed)
    model = load_model(arguments.model, arguments.weights)
    shapes = [parse_shape(text) for text in arguments.input] if arguments.input else None
    inputs = example_inputs(arguments.model, model, shapes, arguments.batch)
    return model, inputs, find_weights(arguments.model, arguments.weights)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def check_writable(*files: str | None) -> None:
    """Raise before the work rather than after it if an output cannot be written."""
    for file in files:
        if file is None or file == "-":
            continue
        if not file or Path(file).is_dir():
            raise RedistillError(f"cannot write to {file or 'no name'}; give the name of a file")
        _check_folder(file, Path(file).absolute().parent)


def check_makeable(path: str) -> None:
    """Raise if a file could not be written even though missing folders are made."""
    if not path:
        raise RedistillError("cannot write to no name; give one")
    parent = Path(path).absolute().parent
    while not parent.exists():
        parent = parent.parent
    _check_folder(path, parent)


def _check_folder(path: str, folder: Path) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise RedistillError(
            f"cannot write {path}: {folder} is not a writable folder; make it, or choose another place"
        )


def check_absent(*paths: str | None) -> None:
    """Raise if an output exists already."""
    for path in paths:
        if path is not None and path != "-" and Path(path).exists():
            raise RedistillError(f"{path} exists; choose another name, or write over it with --force")


def write_json(data: dict[str, Any], path: str) -> None:
    """To the file, or to standard output for ``-``."""
    text = json.dumps(data, indent=2)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        write_atomically(path, f"{text}\n".encode())
