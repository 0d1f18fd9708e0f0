"""Steps that are recorded, not made: into a CUDA graph, or into the one graph of `torch.compile(fullgraph=True)`."""

from __future__ import annotations

import sys
import warnings

import torch


class Capturing:
    """Tells whether the current stream is being captured into a CUDA graph; says once what that means.

    While a stream is captured nothing runs, and what we launched would become part of the user's graph.
    """

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


def is_in_one_graph() -> bool:
    """For code that torch.compile traces: whether a call that it cannot trace would end the user's training with an
    error (`fullgraph=True`), rather than be made between two graphs; says what that means."""
    tracer = sys.modules.get("torch._dynamo.symbolic_convert")
    # torch tells of neither in public; where a version names them otherwise, calls are made as without fullgraph.
    current = getattr(getattr(tracer, "tls", None), "current_tx", None)
    found = bool(getattr(current, "one_graph", False) or getattr(current, "error_on_graph_break", False))
    if found:
        warnings.warn(
            "rwc_wandb: the optimizer's step is compiled with fullgraph=True, and such a graph calls no hooks: call "
            "monitor.measure() after a step to measure it, or compile the step without fullgraph.",
            stacklevel=1,
        )
    return found


# What `torch.compiler.assume_constant_result` sets, without importing the compiler: torch calls it once, as it traces.
is_in_one_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
