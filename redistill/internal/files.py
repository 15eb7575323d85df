"""Writing a file: all of it or nothing."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from redistill.errors import RedistillError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path`` and move it into place.

    Raises:
        RedistillError: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    target = Path(path)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise RedistillError(
            f"cannot write {target}: {reason}; give a file in a folder that exists and can be written to"
        ) from error
