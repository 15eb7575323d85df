"""Checkpoints that are whole or not there: written aside, sealed with checksums, renamed into place.

A checkpoint is a folder `step-000000120` of Accelerate's files and a `manifest.json` with the SHA-256 of each. Whatever
happens while it is written (a kill, a full disk), the older ones stay as they are; whatever happens to it afterwards
is found by its checksums, and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save
from torch import nn

from redistill.errors import CheckpointError

MANIFEST = "manifest.json"
PREFIX = "step-"
ASIDE = ".aside-"
LOCK = ".lock"

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a killed process holds nothing. Where there are no locks, no check.

    Raises:
        CheckpointError: another process is at work there, which would overwrite what this one writes.
    """
    if sys.platform == "win32":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another process is at work in {folder}; wait for it or set run.folder") from error
        except OSError:
            logger.warning("%s has no locks; take care that no other process works there", folder)
        yield


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them; at least two, so that one is whole while another changes."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = max(2, keep)

    def save(self, accelerator: Accelerator, step: int) -> Path:
        """Write the state of the accelerator's objects; every process calls this."""
        final = self.folder / f"{PREFIX}{step:09d}"
        aside = self.folder / f"{ASIDE}{final.name}"
        if accelerator.is_main_process:
            self._discard_unfinished()
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(aside), safe_serialization=False)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                seal(aside)
                publish(aside, final)
                self._prune()
        except (OSError, RuntimeError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(self._failure(step, error)) from error
        accelerator.wait_for_everyone()
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are as they were written; damaged ones are passed over with a warning."""
        for path in reversed(self.all()):
            fault = damage(path)
            if fault is None:
                return path
            logger.warning("%s is damaged (%s); falling back to the checkpoint before it", path, fault)
        return None

    def all(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob(f"{PREFIX}*"))

    def _prune(self) -> None:
        for path in self.all()[: -self.keep]:
            aside = path.with_name(f"{ASIDE}{path.name}")
            path.rename(aside)
            shutil.rmtree(aside)

    def _discard_unfinished(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"{ASIDE}*"):
            shutil.rmtree(path)

    def _failure(self, step: int, error: Exception) -> str:
        last = self.newest()
        kept = f"the last whole one is {last}" if last else "there is none yet"
        reason = " ".join(str(error).split())[:160]
        return (
            f"step {step}: the checkpoint could not be written ({reason}); {kept}; make room and continue with --resume"
        )


def seal(folder: Path) -> None:
    """Flush every file to the disk and write the manifest of their checksums."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        _flush(folder / name)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({name: checksum(folder / name) for name in names}, indent=1))
    _flush(manifest)


def publish(aside: Path, final: Path) -> None:
    """Give a sealed folder its name, in one step."""
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _flush(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        wrong = [name for name, value in expected.items() if checksum(folder / name) != value]
    except (OSError, ValueError, AttributeError) as error:
        return " ".join(str(error).split())[:120]
    return f"{wrong[0]} has changed" if wrong else None


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file as a whole, or leave the old one."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    aside.write_bytes(data)
    _flush(aside)
    aside.replace(path)


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


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
