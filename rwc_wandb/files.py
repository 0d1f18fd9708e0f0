"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to. When the block ends it becomes `path`; after an error it is gone, and `path` as it was.

    Whatever writes it, the same users may read it as any other new file.
    """
    unfinished = path.with_name(path.name + ".tmp")
    mode: int | None = None
    with contextlib.suppress(OSError):
        unfinished.touch()
        mode = unfinished.stat().st_mode
    try:
        yield unfinished
        if mode is not None:
            # What safetensors writes may be read by nobody but the user who runs this.
            with contextlib.suppress(OSError):
                unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


@contextlib.contextmanager
def new_folders(path: Path) -> Iterator[None]:
    """After a failure, of `path` and the folders above it those that are new and empty are taken away again."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_whole(path: Path, text: str) -> None:
    """Write the file so that a kill at any moment leaves the old content or the new."""
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
