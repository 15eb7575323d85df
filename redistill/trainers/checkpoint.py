"""Checkpoints that are whole or not there: written aside, sealed with checksums, renamed into place.

A checkpoint is a folder ``step-000000120`` of safetensors and JSON, nothing that runs, and a ``manifest.json`` with the
SHA-256 of each file. Whatever happens while it is written (a kill, a full disk), the older ones stay as they are;
whatever happens to it afterwards is found by its checksums, and the one before is used. It holds all that a run needs
to go on: weights, optimizer, averages, the best weights, the log so far, and what configuration and teachers were.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from redistill.errors import CheckpointError, RedistillError
from redistill.internal.documents import read_json
from redistill.internal.files import NO_LINK, checksum, flush, refuse_link, remove, write_atomically
from redistill.internal.reasons import reason
from redistill.trainers.folder import RunFolder
from redistill.trainers.state import PLAIN, TENSORS, Tree, read_state, write_state

MANIFEST, LOG = "manifest.json", "log.jsonl"
FILES = frozenset({PLAIN, TENSORS, LOG})
PREFIX = "step-"
ASIDE = ".aside-"
PICKLES = ("pytorch_model.bin", "*.pkl", "optimizer.bin")

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def sole_writer(folder: Path | RunFolder) -> Iterator[None]:
    """Hold a run's folder for this process; a killed process holds nothing. Where there are no locks, no check.

    Raises:
        CheckpointError: another process is at work there, which would overwrite what this one writes.
        RedistillError: the lock's place is a link.
    """
    if sys.platform == "win32":
        yield
        return
    folder = RunFolder.at(folder)
    refuse_link(folder.lock)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.lock, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        raise CheckpointError(f"cannot write to {folder.path}: {reason(error)}; set run.folder") from error
    with os.fdopen(handle, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"another process is at work in {folder.path}; wait for it or set run.folder"
            ) from error
        except OSError:
            logger.warning("%s has no locks; take care that no other process works there", folder.path)
        yield


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them; at least two, so that one is whole while another changes."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = max(2, keep)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"{PREFIX}{step:09d}"

    def save(self, step: int, state: Tree, log: str = "") -> Path:
        """Write a run's state and log under a step; one process calls this.

        Raises:
            CheckpointError: the disk does not take it; the checkpoints before are as they were.
        """
        final = self.path(step)
        aside = self.folder / f"{ASIDE}{final.name}"
        try:
            self._discard_unfinished()
            aside.mkdir()
            write_state(aside, state)
            (aside / LOG).write_text(log, encoding="utf-8")
            seal(aside)
            publish(aside, final)
            self._prune()
        except OSError as error:
            with suppress(OSError):
                remove(aside)
            raise CheckpointError(self._failure(step, error)) from error
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are as they were written; damaged ones are passed over with a warning.

        Raises:
            CheckpointError: it is an earlier version's, which would have to be unpickled.
        """
        for path in reversed(self.all()):
            refuse_pickles(path)
            fault = damage(path)
            if fault is None:
                return path
            logger.warning("%s is damaged (%s); falling back to the checkpoint before it", path, fault)
        return None

    def discard_after(self, path: Path | None) -> None:
        """Remove what is newer than the checkpoint that a run goes on from: all of it is damaged."""
        for other in self.all():
            if path is None or other.name > path.name:
                remove(other)

    def all(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob(f"{PREFIX}*") if re.fullmatch(r"step-[0-9]{9,}", path.name))

    def _prune(self) -> None:
        for path in self.all()[: -self.keep]:
            aside = path.with_name(f"{ASIDE}{path.name}")
            path.rename(aside)
            remove(aside)

    def _discard_unfinished(self) -> None:
        refuse_link(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"{ASIDE}*"):
            remove(path)

    def _failure(self, step: int, error: Exception) -> str:
        last = self.newest()
        kept = f"the last whole one is {last}" if last else "there is none yet"
        return (
            f"step {step}: the checkpoint could not be written ({reason(error)}); {kept}; "
            "make room and continue with --resume"
        )


def seal(folder: Path) -> None:
    """Flush every file to the disk and write the manifest of their checksums."""
    for name in sorted(FILES):
        flush(folder / name)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({name: checksum(folder / name) for name in sorted(FILES)}, indent=1))
    flush(manifest)


def publish(aside: Path, final: Path) -> None:
    """Give a sealed folder its name, in one step; what had the name before is moved out of the way first."""
    if os.path.lexists(final):
        before = final.with_name(f"{ASIDE}before-{final.name}")
        final.rename(before)
        aside.rename(final)
        remove(before)
    else:
        aside.rename(final)
    flush(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder"
    try:
        expected = read_json(folder / MANIFEST, CheckpointError)
        if not isinstance(expected, dict) or expected.keys() != FILES:
            return f"its {MANIFEST} does not name {', '.join(sorted(FILES))}"
        wrong = [name for name, value in expected.items() if checksum(folder / name) != value]
    except (OSError, RedistillError) as error:
        return reason(error)
    return f"{wrong[0]} has changed" if wrong else None


def refuse_pickles(folder: Path) -> None:
    """Raise where a checkpoint is one of Accelerate's, which earlier versions wrote.

    Raises:
        CheckpointError: with what can be done.
    """
    if folder.is_dir() and any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise CheckpointError(
            f"{folder} was written by an earlier version, as pickles, which can run code and are not read; "
            "finish that run with the version that began it, or start anew in another run.folder"
        )


def read_checkpoint(folder: Path) -> Tree:
    """The state in a checkpoint.

    Raises:
        CheckpointError: it is damaged, or an earlier version's.
    """
    refuse_pickles(folder)
    fault = damage(folder)
    if fault is not None:
        raise CheckpointError(f"{folder} is damaged ({fault}); give the checkpoint before it")
    return read_state(folder)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state dict as safetensors, whole or not at all; what has two names, under the first."""
    seen: set[object] = set()
    state = {}
    for name, value in module.state_dict().items():
        place = (value.data_ptr(), value.shape) if value.numel() else name
        if place not in seen:
            seen.add(place)
            state[name] = value.detach().cpu().contiguous()
    write_atomically(path, save(state))


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    own: dict[str, Tensor] = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    write_atomically(path, save(own))
