"""Checkpoints that a kill at any moment cannot spoil.

Accelerate's `save_state` deletes the older checkpoint before the newer is whole, and unpickles freely what it loads.
Here a checkpoint is one file: written beside its place, flushed to the disk, then renamed. The last two are kept. What
is loaded is tensors and plain values only (`weights_only=True`), after a look at the checksums that torch wrote.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from rwc_wandb.files import whole_file

FOLDER = "checkpoints"
KEPT = 2


class Checkpoints:
    """The checkpoints of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._complained = False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after optimizer step `step`; a disk that is full is said once, and training goes on."""
        try:
            self.folder.mkdir(exist_ok=True)
            with whole_file(self.folder / f"step-{step:010}.pt") as unfinished, unfinished.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            for old in self._paths()[:-KEPT]:
                old.unlink()
        except (OSError, RuntimeError) as error:
            if not self._complained:
                self._complained = True
                warnings.warn(f"No checkpoint at step {step} ({error}): training goes on without.", stacklevel=2)

    def latest(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if there is none. What cannot be read is set aside, as `.damaged`."""
        for path in reversed(self._paths()):
            try:
                with zipfile.ZipFile(path) as file:
                    if damaged := file.testzip():
                        raise OSError(f"the checksum of {damaged} is wrong")
                state = torch.load(path, map_location="cpu", weights_only=True)
                if not isinstance(state, dict):
                    raise TypeError(f"it holds a {type(state).__name__}")
                return state
            except Exception as error:
                warnings.warn(f"{path} cannot be read ({type(error).__name__}): the one before is used.", stacklevel=2)
                # Else it would count as one of the newest that are kept. Another process may have been faster.
                with contextlib.suppress(OSError):
                    path.replace(path.with_suffix(".damaged"))
        return None

    def remove(self) -> None:
        """The run has finished: there is nothing to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))
