"""What the command lines share: model and input options, one-line errors, JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

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


def write_json(data: dict[str, Any], path: str) -> None:
    """To the file, or to standard output for ``-``."""
    text = json.dumps(data, indent=2)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        write_atomically(path, f"{text}\n".encode())
