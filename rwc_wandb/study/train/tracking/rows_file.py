"""The rows of a run in a file of ours: a JSON object a line, written before W&B gets it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb

from rwc_wandb.log.outbox import Row

ROWS_FILE = "rows.jsonl"


class RowsFile:
    """`rows.jsonl` in a run's folder. A row is in it when `append` returns: a kill takes none away.

    Attributes:
        size: bytes so far. A checkpoint notes it, and `cut` takes away the rows that a resumed training logs again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS_FILE
        self.size = self.path.stat().st_size if self.path.exists() else 0
        self._unwritten = b""

    def append(self, row: Row) -> None:
        """Add a row, of numbers, texts and histograms. While the disk is full, rows wait in memory."""
        self._unwritten += json.dumps(row, default=_histogram_as_json).encode() + b"\n"
        with contextlib.suppress(OSError):
            with self.path.open("ab", buffering=0) as file:
                if file.write(self._unwritten) < len(self._unwritten):
                    file.truncate(self.size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.size += len(self._unwritten)
            self._unwritten = b""

    def rows(self) -> Iterator[Row]:
        """All rows, the oldest first, up to one that a kill has cut off."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield {key: _histogram_again(value) for key, value in json.loads(line).items()}

    def cut(self, size: int) -> None:
        """Forget the rows after the first `size` bytes."""
        if size < self.size:
            os.truncate(self.path, size)
            self.size = size

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _histogram_as_json(value: Any) -> dict[str, Any]:
    if not isinstance(value, wandb.Histogram):
        raise TypeError(f"a row with a {type(value).__name__}")
    return {"values": value.histogram, "bins": value.bins}


def _histogram_again(value: Any) -> Any:
    return wandb.Histogram(np_histogram=(value["values"], value["bins"])) if isinstance(value, dict) else value
