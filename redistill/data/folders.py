"""Folders of pictures: one folder a class below `train` and `test` (or `val`), or pictures without classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.data.pictures import is_picture
from redistill.errors import DataError
from redistill.internal.reasons import reason

_NAMED_AT_MOST = 3
_EVERY = 5
_HELD_OUT = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class PictureFiles:
    """Picture files below a folder, in a fixed order, and the class of each."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class PictureFolder:
    """The pictures to train on, those to test on, and the names of the classes; no names where there are none."""

    train: PictureFiles
    test: PictureFiles
    classes: tuple[str, ...]


def scan(root: Path) -> PictureFolder:
    """Find pictures and classes, or say in one line what is wrong with the folder.

    Without class folders, all pictures are found however deep they lie; where there is no held-out folder either,
    every fifth of them is held out.

    Raises:
        FileNotFoundError: no such folder.
        DataError: a folder that cannot be read, no pictures, an empty class, a held-out folder without one to train on,
            or classes that differ between training and test.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    train, test = _part(root, ("train",)), _part(root, _HELD_OUT)
    if train is None and test is not None:
        raise DataError(f"{root} has a folder {test.name!r} and none 'train'; put the pictures to train on there")
    if train is None or not _subfolders(train):
        return _scan_without_classes(train or root, test)
    if test is None:
        raise DataError(f"{root} has no folder 'test' or 'val'; put the held-out pictures there, one folder a class")
    return _scan_classes(train, test)


def _scan_without_classes(train: Path, test: Path | None) -> PictureFolder:
    files = pictures_below(train)
    if len(files) < _EVERY:
        raise DataError(f"{train} holds {len(files)} pictures; data.root is a folder of them, or of 'train' and 'test'")
    if test is not None:
        tested = pictures_below(test)
        if not tested:
            raise DataError(f"{test} holds no pictures; add some, or remove the folder to hold out every {_EVERY}th")
        return PictureFolder(_unlabelled(train, files), _unlabelled(test, tested), ())
    held_out = files[::_EVERY]
    kept = [path for index, path in enumerate(files) if index % _EVERY]
    return PictureFolder(_unlabelled(train, kept), _unlabelled(train, held_out), ())


def _unlabelled(root: Path, files: Sequence[Path]) -> PictureFiles:
    return PictureFiles(root, tuple(files), (0,) * len(files))


def _scan_classes(train: Path, test: Path) -> PictureFolder:
    classes, tested = _subfolders(train), _subfolders(test)
    for here, names, other in ((test, set(tested) - set(classes), train), (train, set(classes) - set(tested), test)):
        if names:
            raise DataError(f"{here} has {_class_names(names)} that {other} lacks; both need the same class folders")
    return PictureFolder(_labelled(train, classes), _labelled(test, classes), tuple(classes))


def _labelled(root: Path, classes: Sequence[str]) -> PictureFiles:
    files, labels, empty = list[Path](), list[int](), list[str]()
    for label, name in enumerate(classes):
        found = pictures_below(root / name)
        files += found
        labels += [label] * len(found)
        empty += [] if found else [name]
    if empty:
        raise DataError(f"{root} has no picture of {_class_names(empty)}; add some, or remove the folder")
    return PictureFiles(root, tuple(files), tuple(labels))


def _class_names(names: set[str] | list[str]) -> str:
    shown, rest = sorted(names)[:_NAMED_AT_MOST], len(names) - _NAMED_AT_MOST
    kind = "a class" if len(names) == 1 else "classes"
    return f"{kind} {', '.join(map(repr, shown))}" + (f" and {rest} more" if rest > 0 else "")


def pictures_below(folder: Path) -> list[Path]:
    """All pictures however deep, in order of their paths; hidden files and folders are left out.

    Links to folders are followed, though never in a circle.

    Raises:
        DataError: a folder that cannot be read.
    """
    return sorted(_walk(folder, frozenset()))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    place = os.path.realpath(folder)
    if place in above:
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, above | {place})
        elif is_picture(path) and (entry.is_file() or entry.is_symlink()):  # a link that leads nowhere is a damaged one
            yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder and is not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read as a folder ({reason(error)})") from error


def _part(root: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders that is there, in capitals or not."""
    known = {name.lower(): root / name for name in _subfolders(root)}
    return next((known[name] for name in names if name in known), None)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())
