"""Bad inputs: configurations, assignments, specs, tap files, recipes and budgets, mutated at random from good ones."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from redistill import recipe, transform
from redistill.budget import parse_budget
from redistill.compiler.loading import load_student
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import override, packaged, read, read_file
from redistill.config.settings import ClassifierConfig
from redistill.config.trust import check_trust
from redistill.distillation import Distillation
from redistill.errors import RedistillError
from redistill.internal.documents import dump_yaml, read_yaml
from redistill.models import load_model
from redistill.models.specs import parse_spec
from redistill.planning.taps import read_taps

SLOW = 20.0
"""Seconds after which an input counts as a hang."""
LONGEST = 20_000
"""Characters of a message; the command line shows the first thousand."""
MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -3, 1, 2, 10**6, 10**400, -(2**63), 0.0, -0.5, 1.5, float("nan"), float("inf")),
    *("", " ", "a", "none", "null", "1e400", "-1", "../../x", "/nope", "os:system?command=ls", "x" * 5000, "1" * 16000),
    *("\x00", "\u212a", "☃", "zzz", "4x", "nan%", "{", "[1", "&a [*a]", "!!python/name:os.system", "1:30", "kd@", "@"),
    *("red+kd+", "kd:x", "a.b:c", [], [None], [[]], [-1, 0.5], ["a", 1], {}, {"a": 1}, {"a": {"b": [1]}}, {1: 2}),
)


@dataclass
class Tally:
    """How many inputs were tried, how many were accepted, and each that ended in anything but a refusal."""

    tried: int = 0
    accepted: int = 0
    faults: list[str] = field(default_factory=list)


Trial = Callable[[], Any]


def try_inputs(counts: dict[str, int], seed: int, folder: Path) -> dict[str, Tally]:
    """Try so many inputs of each kind, the same at each call with a seed."""
    tallies = {}
    for kind, count in counts.items():
        chance = random.Random(f"{seed} {kind}")
        tallies[kind] = _tally(KINDS[kind](chance, folder), count)
    return tallies


def _tally(trials: Iterator[tuple[str, Trial]], count: int) -> Tally:
    tally = Tally()
    for (shown, trial), _ in zip(trials, range(count), strict=False):
        tally.tried += 1
        started = time.perf_counter()
        try:
            trial()
            tally.accepted += 1
        except RedistillError as error:
            if len(str(error)) > LONGEST:
                tally.faults.append(f"{shown[:80]}: a message of {len(str(error))} characters")
        except BaseException as error:
            tally.faults.append(f"{shown[:80]}: {type(error).__name__}: {str(error)[:120]}")
        if time.perf_counter() - started > SLOW:
            tally.faults.append(f"{shown[:80]}: took {time.perf_counter() - started:.0f} s")
    return tally


def mutated(tree: Any, chance: random.Random) -> Any:
    """A tree with one to three of its places changed, removed or added to."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        tree = _mutate(tree, chance)
    return tree


def _mutate(tree: Any, chance: random.Random) -> Any:
    if not isinstance(tree, (dict, list)) or not tree or chance.random() < 0.15:
        return copy.deepcopy(chance.choice(NASTY))
    key = chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
    if chance.random() < 0.1 and isinstance(tree, dict):
        del tree[key]
    elif chance.random() < 0.1 and isinstance(tree, dict):
        tree[f"{key}_"] = tree.pop(key)
    else:
        tree[key] = _mutate(tree[key], chance)
    return tree


def _configurations(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    bases = [(kind, read_file(n)) for kind, t in KNOWN for n in packaged(t)]
    while True:
        kind, base = chance.choice(bases)
        raw = mutated(base, chance)
        yield str(raw), partial(_read_configuration, kind, raw)


KNOWN: tuple[tuple[type[Any], str], ...] = ((ClassifierConfig, "classifier"), (DenoiserConfig, "denoiser"))


def _read_configuration(kind: type[Any], raw: Any) -> None:
    if not isinstance(raw, dict):
        raise RedistillError("a configuration is a mapping")
    config = read(kind, raw)
    check_trust(config, "the configuration", False)
    Distillation(config.distillation.methods)
    if config.student.budget is not None:
        parse_budget(config.student.budget)


def _files(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    path = folder / "file.yaml"
    texts = [
        Path(str(find)).read_bytes() for find in sorted((Path(recipe.__file__).parent / "configs").rglob("*.yaml"))
    ]
    while True:
        content = bytearray(chance.choice(texts))
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.1:
            content = bytearray(f"base: {path}\na: {chance.choice(NASTY)}".encode(errors="replace"))
        data = bytes(content[: chance.randint(0, len(content))])
        yield repr(data[:80]), partial(_read_file, path, data)


def _read_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    raw = read_file(str(path))
    raw.pop("trainer", None)
    read(ClassifierConfig, raw)


def _assignments(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    base = read_file("digits/smoke.yaml")
    keys = ["recipe.epochs", "recipe.steps", "student.budget", "distillation.methods", "distillation.methods.kd.weight"]
    keys += ["data.train_limit", "teachers", "teachers.x.model", "run.folder", "a.b.c", "", ".", "recipe", "data.mean"]
    while True:
        text = f"{chance.choice(keys)}{chance.choice(['=', '', '=='])}{_written(chance.choice(NASTY))}"
        yield text, partial(_assign, base, text)


def _written(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return "1" * 5000


def _assign(base: dict[str, Any], text: str) -> None:
    _read_configuration(ClassifierConfig, override(base, [text]))


def _specs(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    parts = ["torchvision", "redistill", "timm", ":", ":", "?", "&", "=", "resnet18", "ddpm_unet", "width", "nan", " "]
    parts += [
        "width_mult",
        "num_classes",
        "[1,2",
        "]",
        "-1",
        "0",
        "null",
        "{a: 1}",
        "1:30",
        "\n",
        "mobilenet_v2_strided",
    ]
    while True:
        free = "".join(chance.choice(parts) for _ in range(chance.randint(1, 12)))
        good = f"redistill:mobilenet_v2_strided?{chance.choice(['width_mult', 'num_classes', 'strides', 'zzz'])}="
        if chance.random() < 0.03:
            spec = good + str(chance.choice(["0", "-1", "a", "null", "[]", "[1]", "{}", "nan", "0.1", "true"]))
            yield spec, partial(load_model, spec, "random")
        else:
            yield free, partial(parse_spec, free)


def _budgets(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    parts = [
        "4",
        "x",
        "%",
        "KiB",
        "MB",
        "B",
        ".",
        "e",
        "-",
        "1" * 5000,
        "0",
        " ",
        "\u212a",
        "١",
        "nan",
        "inf",
        "9" * 300,
    ]
    while True:
        budget = "".join(chance.choice(parts) for _ in range(chance.randint(1, 5)))
        given = chance.choice([budget, budget, budget, *NASTY])
        yield budget[:80], partial(_parse_budget, given)


def _parse_budget(given: Any) -> int:
    return parse_budget(given).limit(10**6)


def _taps(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    path, good = folder / "taps.yaml", [{"student": "layer2.0 in", "teacher": "layer3.0 in"}] * 3
    while True:
        data = dump_yaml_or_text(mutated(good, chance)).encode(errors="replace")
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data) + 1)] + bytes([chance.randrange(256)])
        yield repr(data[:80]), partial(_read_taps, path, data)


def _read_taps(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    read_taps(path)


def _recipes(chance: random.Random, folder: Path) -> Iterator[tuple[str, Trial]]:
    torch.manual_seed(0)
    teacher = load_model(MODEL, "random")
    saved = transform(teacher, torch.zeros(1, 3, 32, 32), "2x", model=MODEL).save(folder / "student")
    good = read_yaml(saved / recipe.RECIPE)
    while True:
        changed = mutated(good, chance)
        yield str(changed), partial(_load, saved, changed, teacher)


def _load(saved: Path, changed: Any, teacher: torch.nn.Module) -> None:
    whole = changed if isinstance(changed, dict) else {"format": changed}
    (saved / recipe.RECIPE).write_bytes(recipe.sealed(whole).encode(errors="replace"))
    load_student(saved, teacher)


def dump_yaml_or_text(tree: Any) -> str:
    """A tree as YAML, where YAML can hold it."""
    try:
        return dump_yaml(tree)
    except Exception:
        return repr(tree)


KINDS: dict[str, Callable[[random.Random, Path], Iterator[tuple[str, Trial]]]] = {
    "configurations": _configurations,
    "configuration files": _files,
    "assignments": _assignments,
    "model specs": _specs,
    "tap files": _taps,
    "recipes": _recipes,
    "budgets": _budgets,
}
COUNTS = {
    "configurations": 3000,
    "configuration files": 1500,
    "assignments": 1500,
    "model specs": 2500,
    "tap files": 1500,
    "recipes": 500,
    "budgets": 2500,
}
