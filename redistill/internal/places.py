"""Places to write to, looked at before the work rather than after it."""

from __future__ import annotations

import os
from pathlib import Path

from redistill.errors import RedistillError


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
