"""A stranger's files: each names, pickles or spells out a command, and is opened by whatever opens its kind."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill import load_student, recipe, transform
from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import load, override, read, resolved
from redistill.config.settings import ClassifierConfig
from redistill.errors import RedistillError
from redistill.export.metadata import find_experiment
from redistill.internal.documents import dump_yaml, read_yaml
from redistill.models import load_model
from redistill.studies.benchmark.pair import read_pair
from redistill.studies.evaluation.paths import find
from redistill.studies.gallery.entries import read_entry
from redistill.trainers.checkpoint import Checkpoints, read_checkpoint
from redistill.trainers.classifier import ClassifierExperiment
from redistill.trainers.denoiser import DenoiserExperiment

MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
PROVIDERS = (
    "os:system?command='{}'",
    "subprocess:getoutput?cmd='{}'",
    "ultralytics:evil.yaml",
    "builtins:exec?source='1'",
)


@dataclass
class Opened:
    """Files that were opened, and those that ran something."""

    tried: int = 0
    ran: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return os.system, (self.text,)


def open_strangers(place: Path) -> Opened:
    """Make and open all of them."""
    mark, opened = place / "was-here", Opened()
    command = f"touch {mark}"
    for name, opening in _openings(place, command):
        opened.tried += 1
        try:
            opening()
        except RedistillError:
            pass
        except Exception as error:
            opened.faults.append(f"{name}: {type(error).__name__}: {str(error)[:100]}")
        if mark.exists():
            opened.ran.append(name)
            mark.unlink()
    return opened


def _openings(place: Path, command: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from _students(place / "student", command)
    yield from _runs(place / "run", command)
    yield from _pickles(place / "pickles", command)
    if _has_int8():
        from redistill.quantization.files import load_program

        for name, path in make_archives(place, command):
            yield f"int8 file, {name}", partial(load_program, path)


def _students(folder: Path, command: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    torch.manual_seed(0)
    transform(load_model(MODEL, "random"), torch.zeros(1, 3, 32, 32), "2x", model=MODEL).save(folder)
    good = read_yaml(folder / recipe.RECIPE)
    for provider in PROVIDERS:
        for changes in ({"model": provider.format(command)}, {"request": {**good["request"], "taps": "/etc/passwd"}}):
            text = recipe.sealed({**good, **changes})
            for name, opening in (("load", load_student), ("benchmark", read_pair), ("gallery", read_entry)):
                (folder / recipe.RECIPE).write_text(text)
                yield f"student, {name}, {next(iter(changes))}", partial(opening, str(folder))


def _runs(folder: Path, command: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    folder.mkdir()
    evil = PROVIDERS[0].format(command)
    places = (f"teacher.model={evil}", f"student.model={evil}", f"teachers.other.model={evil}", "data.name=os:getcwd",
              "distillation.methods={os:system: {command: x}}", "teacher.model=transformers:AutoModel")  # fmt: skip
    kinds: tuple[tuple[type[Any], str, Any], ...] = (
        (ClassifierConfig, "digits/smoke.yaml", ClassifierExperiment),
        (DenoiserConfig, "digits/ddpm_smoke.yaml", DenoiserExperiment),
    )
    for kind, name, experiment in kinds:
        for text in places:
            raw = override(resolved(load(kind, name)), [text])
            content = dump_yaml({"config": raw})
            for what, opening in (
                ("evaluate", lambda: find(folder)),
                ("export", lambda: find_experiment(folder / "student")),
                ("resume", partial(_begin, experiment, kind, raw, folder)),
            ):
                (folder / "config.yaml").write_text(content)
                yield f"run, {what}, {text.partition('=')[0]}", opening


def _begin(experiment: Any, kind: type[Any], raw: Any, folder: Path) -> None:
    experiment(read(kind, raw), folder)


def _pickles(folder: Path, command: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    checkpoint = folder / "checkpoints" / "step-000000001"
    checkpoint.mkdir(parents=True)
    evil = pickle.dumps(Command(command))
    names = (
        "pytorch_model.bin",
        "custom_checkpoint_0.pkl",
        "random_states_0.pkl",
        "optimizer.bin",
        "state.safetensors",
    )
    for name in (*names, "state.json", "manifest.json"):
        path = checkpoint / name
        path.write_bytes(evil)
        yield f"checkpoint, newest, {name}", lambda: Checkpoints(checkpoint.parent, 2).newest()
        yield f"checkpoint, read, {name}", lambda: read_checkpoint(checkpoint)
        path.unlink()
    for name in ("weights.pth", "weights.safetensors", "weights.bin"):
        torch.save({"state_dict": Command(command)}, folder / name)
        yield f"weights, {name}", partial(load_model, MODEL, folder / name)


def _has_int8() -> bool:
    from redistill.errors import QuantizationError
    from redistill.quantization.backend import require_backend

    try:
        require_backend()
    except QuantizationError:
        return False
    return True


def make_archives(place: Path, command: str) -> Iterator[tuple[str, Path]]:
    """An int8 file, and one for each way in which torch's reader can be made to run a command."""
    from redistill.quantization import quantize
    from redistill.quantization.files import save_program

    torch.manual_seed(0)
    example = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    good = save_program(quantize(network, [example], example[:1]), example[:1], place / "good.pt2")
    with zipfile.ZipFile(good) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = io.BytesIO()
    torch.save(Command(command), pickled)
    for name, change in _changes(command, pickled.getvalue()).items():
        path = place / f"{name.replace(' ', '-')}.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in change(dict(entries)).items():
                archive.writestr(entry, content)
        yield name, path
    (place / "pickle.pt2").write_bytes(pickle.dumps(Command(command)))
    yield "a pickle", place / "pickle.pt2"


Entries = dict[str, bytes]


def _changes(command: str, pickled: bytes) -> dict[str, Callable[[Entries], Entries]]:
    code = f"__import__('os').system({command!r})"

    def config(entries: Entries) -> Entries:
        name = "archive/data/weights/model_weights_config.json"
        table = json.loads(entries[name])
        first = next(iter(table["config"].values()))
        first["use_pickle"] = True
        return {**entries, name: json.dumps(table).encode(), f"archive/data/weights/{first['path_name']}": pickled}

    def constant(entries: Entries) -> Entries:
        name = "archive/data/constants/model_constants_config.json"
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        table = {"config": {"x": entry}}
        return {**entries, name: json.dumps(table).encode(), "archive/data/constants/opaque_obj_0": pickled}

    def graph(change: Callable[[Any], None]) -> Callable[[Entries], Entries]:
        def changed(entries: Entries) -> Entries:
            model = json.loads(entries["archive/models/model.json"])
            change(model)
            return {**entries, "archive/models/model.json": json.dumps(model).encode()}

        return changed

    def operator(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"

    def expression(model: Any) -> None:
        text = json.dumps(model).replace("Symbol('s", f"{code} + Symbol('s")
        model.clear()
        model.update(json.loads(text))

    def old(entries: Entries) -> Entries:
        return {"version": b"8.8", "serialized_exported_program.json": b"{}", "serialized_state_dict.pt": pickled,
                "serialized_constants.pt": pickled, "serialized_example_inputs.pt": pickled}  # fmt: skip

    return {
        "unchanged": lambda entries: entries,
        "pickled weights": config,
        "a pickled constant": constant,
        "pickled inputs": lambda entries: {**entries, "archive/data/sample_inputs/model.pt": pickled},
        "legacy weights": lambda entries: {**entries, "archive/data/weights/model.pt": pickled},
        "another operator": graph(operator),
        "a guard": graph(lambda model: model.update(guards_code=[code])),
        "a size": graph(expression),
        "the older format": old,
    }
