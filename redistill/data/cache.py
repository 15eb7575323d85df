"""Pictures decoded once: their bytes in one memory-mapped file, valid as long as the picture files are the same.

All pictures are decoded before anything is trained, so that a damaged one is found at the start and not in the night.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from redistill.data.folders import PictureFiles
from redistill.data.pictures import UnreadablePictureError, count_pixels, decode
from redistill.errors import DataError

FORMAT = 1
PIXELS, INDEX = "pixels.bin", "index.json"
GIB = 1 << 30

_NAMED_AT_MOST = 3
_EACH = 4
"""Pictures that are in memory at once, for each thread."""

Damaged = Literal["refuse", "skip"]
Failures = dict[int, str]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedPictures:
    """Pictures by index, bytes [C, H, W], and which of the files they are; a damaged file that is skipped has none."""

    get: Callable[[int], Tensor]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class _Stored:
    """Decoded pictures one after the other, their shapes and ends, and what is wrong with those that have none."""

    pixels: Tensor
    shapes: Sequence[tuple[int, int]]
    ends: Sequence[int]
    channels: int
    failures: Failures


def open_pictures(
    found: PictureFiles, channels: int, *, cache: Path | None, limit: float, damaged: Damaged
) -> DecodedPictures:
    """Decode pictures, or find them decoded in ``cache``.

    Folders that would take more than ``limit`` GiB are decoded picture by picture whenever one is asked for, and so are
    all where ``cache`` is None. Beforehand only the files' heads are looked at then, or, where damaged pictures are to
    be skipped, the whole pictures.

    Raises:
        DataError: pictures that cannot be read, by name and number, unless they are to be skipped.
    """
    place = None if cache is None else _place(cache, found, channels)
    stored = None if place is None else _load(place)
    if stored is None:
        pixels, failures = _look(found.files)
        if place is not None and pixels * channels <= limit * GIB:
            _write(place, found.files, channels)
            stored = _load(place)
    if stored is not None:
        return _read(stored, found, damaged)
    if damaged == "skip":
        failures = _attempt(found.files, channels)
    kept = _settle(found, failures, damaged)
    return DecodedPictures(lambda index: decode_now(found.files[kept[index]], channels), kept)


def _place(cache: Path, found: PictureFiles, channels: int) -> Path:
    """A folder for these pictures in this state."""
    states = "\n".join(f"{path.relative_to(found.root)} {_state(path)}" for path in found.files)
    return cache / _name(f"{FORMAT} {channels} {found.root.resolve()}") / _name(states)


def _state(path: Path) -> str:
    """A file's size and times: of its content, and of whatever was done to it, since archives may set the first."""
    try:
        state = path.stat()
    except OSError:  # told of when it is decoded
        return "unreadable"
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def _name(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=12).hexdigest()


def _look(files: Sequence[Path]) -> tuple[int, Failures]:
    """The pixels of all pictures, by the files' heads, and what is wrong with those that have none."""
    pixels, failures = 0, Failures()
    for index, path in enumerate(files):
        try:
            pixels += count_pixels(path)
        except UnreadablePictureError as error:
            failures[index] = str(error)
    return pixels, failures


def _write(place: Path, files: Sequence[Path], channels: int) -> None:
    """Decode into a folder aside and rename it; of several processes the first to be ready counts."""
    aside = place.with_name(f".{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        _decode_all(aside, files, channels)
        _put(aside, place)
    except OSError as error:
        folder = place.parent.parent
        logger.warning("decoded pictures cannot be kept in %s (%s); set data.cache to another folder", folder, error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _decode_all(folder: Path, files: Sequence[Path], channels: int) -> None:
    shapes, failures = list[tuple[int, int]](), Failures()
    with (folder / PIXELS).open("wb") as file:
        decoded = tqdm(_decoded(files, channels), total=len(files), unit="picture", delay=3, leave=False)
        for index, image in enumerate(decoded):
            if isinstance(image, str):
                failures[index] = image
                shapes.append((0, 0))
            else:
                shapes.append((image.shape[1], image.shape[2]))
                file.write(image.numpy().tobytes())
    (folder / INDEX).write_text(json.dumps({"channels": channels, "shapes": shapes, "failures": failures}))


def _put(aside: Path, place: Path) -> None:
    """Move into place, and clear away what was decoded of earlier states of the same folder."""
    try:
        aside.rename(place)
    except OSError:  # another process was first
        if not (place / INDEX).is_file():
            raise
    for other in place.parent.iterdir():
        if other.name != place.name and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)


def _decoded(files: Sequence[Path], channels: int) -> Iterator[Tensor | str]:
    """Each picture, or what is wrong with it, in order; decoders let go of Python's lock."""

    def attempt(path: Path) -> Tensor | str:
        try:
            return decode(path, channels)
        except UnreadablePictureError as error:
            return str(error) or "unreadable"

    threads = os.cpu_count() or 1
    many = _EACH * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), many):
            yield from pool.map(attempt, files[start : start + many])


def _attempt(files: Sequence[Path], channels: int) -> Failures:
    """Decode all pictures to see which cannot be."""
    decoded = tqdm(_decoded(files, channels), total=len(files), unit="picture", delay=3, leave=False)
    return {index: image for index, image in enumerate(decoded) if isinstance(image, str)}


def _load(place: Path) -> _Stored | None:
    """Decoded pictures as they lie in a folder; one that is damaged, by a crash of the system say, is cleared away."""
    if not os.path.isfile(place / INDEX):
        return None
    try:
        about: dict[str, Any] = json.loads((place / INDEX).read_text())
        shapes, channels = about["shapes"], about["channels"]
        ends = np.cumsum([channels * height * width for height, width in shapes])
        pixels = np.memmap(place / PIXELS, np.uint8, mode="c", shape=(int(ends[-1]),))
        failures = {int(index): said for index, said in about["failures"].items()}
        return _Stored(torch.from_numpy(pixels), shapes, ends.tolist(), channels, failures)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        shutil.rmtree(place, ignore_errors=True)
        return None


def _read(stored: _Stored, found: PictureFiles, damaged: Damaged) -> DecodedPictures:
    kept = _settle(found, stored.failures, damaged)

    def get(index: int) -> Tensor:
        height, width = stored.shapes[kept[index]]
        end = stored.ends[kept[index]]
        return stored.pixels[end - stored.channels * height * width : end].view(stored.channels, height, width)

    return DecodedPictures(get, kept)


def decode_now(path: Path, channels: int) -> Tensor:
    """Decode a picture when it is asked for.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return decode(path, channels)
    except UnreadablePictureError as error:
        raise DataError(f"{path} cannot be read ({error}); remove or replace it") from error


def decode_all(files: Sequence[Path], channels: int, prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Decode and prepare pictures, a few at a time.

    Raises:
        DataError: some cannot be read; the first are named.
    """
    pictures, failures = list[Tensor](), Failures()
    for index, image in enumerate(_decoded(files, channels)):
        if isinstance(image, str):
            failures[index] = image
        else:
            pictures.append(prepare(image))
    if failures:
        raise DataError(f"{_name_failures(files, failures)}; remove or replace them")
    return pictures


def _settle(found: PictureFiles, failures: Failures, damaged: Damaged) -> tuple[int, ...]:
    """The files that are kept; damaged ones are refused, or told of and left out."""
    if failures:
        said = _name_failures(found.files, failures)
        if damaged == "refuse" or len(failures) == len(found.files):
            raise DataError(f"{said}; remove or replace them, or set data.damaged=skip")
        logger.warning("%s; skipped", said)
    return tuple(index for index in range(len(found.files)) if index not in failures)


def _name_failures(files: Sequence[Path], failures: Failures) -> str:
    rest = len(failures) - _NAMED_AT_MOST
    named = ", ".join(f"{files[index]} ({failures[index]})" for index in sorted(failures)[:_NAMED_AT_MOST])
    more = f" and {rest} more" if rest > 0 else ""
    return f"{len(failures)} of {len(files)} pictures cannot be read: {named}{more}"
