"""Folders of pictures: one folder a class below `train` and `test` (or `val`), or pictures without classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.data.pictures import is_picture
from redistill.errors import DataError

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
        DataError: no pictures, an empty class, or classes that differ between training and test.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if train == root or not _subfolders(train):
        return _scan_without_classes(train, None if train == root else test)
    if test is None:
        raise DataError(f"{root} has no folder 'test' or 'val'; put the held-out pictures there, one folder a class")
    return _scan_classes(train, test)


def _scan_without_classes(train: Path, test: Path | None) -> PictureFolder:
    files = pictures_below(train)
    if len(files) < _EVERY:
        raise DataError(f"{train} holds {len(files)} pictures; data.root is a folder of them, or of 'train' and 'test'")
    if test is not None:
        return PictureFolder(_unlabelled(train, files), _unlabelled(test, pictures_below(test)), ())
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
    """All pictures however deep, links to folders followed, in order of their paths."""
    found = (Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if is_picture(path))


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
