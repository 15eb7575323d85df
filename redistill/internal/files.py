"""Files: written all or nothing and never through a link, read within limits, told apart by their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from redistill.errors import RedistillError
from redistill.internal.reasons import reason

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
BLOCK = 1 << 20


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, flush it to the disk and move it into place.

    Raises:
        RedistillError: the folder does not exist or cannot be written to, or ``path`` is a folder or a link.
    """
    target = Path(path)
    refuse_link(target)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:  # exclusively: nothing that was planted there is opened
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RedistillError(
            f"cannot write {target}: {reason(error)}; give a file in a folder that exists and can be written to"
        ) from error


def append(path: Path, text: str) -> None:
    """Append to a file, which is made if need be.

    Raises:
        RedistillError: it cannot be written, or is a link.
    """
    refuse_link(path)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RedistillError(f"cannot write {path}: {reason(error)}; make room, or choose another folder") from error


def refuse_link(path: Path) -> None:
    """Raise where something would be written through a link, which may lead anywhere.

    Raises:
        RedistillError: ``path`` is a symbolic link.
    """
    if path.is_symlink():
        raise RedistillError(f"{path} is a link; name the place that it leads to, or remove it")


def read_text(path: Path, limit: int) -> str:
    """The text of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it is missing, no regular file, or too large.
        UnicodeDecodeError: it is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"larger than {limit:,} bytes")
    return content.decode("utf-8")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder with all that is in it; nothing is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
