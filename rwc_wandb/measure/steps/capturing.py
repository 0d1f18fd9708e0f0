"""CUDA graphs: while a stream is captured nothing runs, and what we launched would become part of the user's graph."""

from __future__ import annotations

import warnings

import torch


class Capturing:
    """Tells whether the current stream is being captured into a CUDA graph; says once what that means."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self) -> bool:
        if not torch.cuda.is_initialized() or not torch.cuda.is_current_stream_capturing():
            return False
        if not self._said:
            self._said = True
            warnings.warn(
                "rwc_wandb: the optimizer's step is being captured into a CUDA graph, whose replays call no hooks: "
                "call monitor.measure() after a replay to measure it.",
                stacklevel=2,
            )
        return True
