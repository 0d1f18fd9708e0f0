"""What `watch` returns: measures as the optimizer steps, lives and ends with the training, and never harms it."""

from __future__ import annotations

import atexit
import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from rwc_wandb.measure.delivery import Delivery, MonitoringStopped, described
from rwc_wandb.measure.distributed.ranks import Ranks
from rwc_wandb.measure.layers import Layer, merged_layers
from rwc_wandb.measure.measuring import Measuring
from rwc_wandb.measure.series.history import History
from rwc_wandb.measure.series.state import pack, unpack
from rwc_wandb.measure.steps.capturing import Capturing
from rwc_wandb.measure.steps.complete import CompleteSteps
from rwc_wandb.measure.steps.count import StepCount
from rwc_wandb.measure.steps.loading import watch_loading
from rwc_wandb.measure.steps.unseen import warn_of_unseen_steps


class Monitor:
    """Measures the Relative Weight Change of a model's layers as its optimizer steps. `rwc_wandb.watch` makes one.

    Args:
        idle: never measure: this rank's weights are measured elsewhere.
        ranks: where weights are sharded or measuring is shared, the ranks that do it together.
        share: divide the measuring of what every rank holds among `ranks`.
        find_again: finds the layers again when an optimizer has got further parameter groups; default: none is added.
        model, layers, optimizers, every, log_every, histogram_every: as in `watch`, or what it makes of them.
        delivery: takes the measurements; default: into `history`, and no log.

    Attributes:
        layers: the tracked layers, in forward order.
        history: every measurement so far that the host has read; complete after `flush` or `close`.
        step: optimizer steps counted so far. (A fused optimizer under GradScaler tells only later that it has skipped
            one: until then `step` counts it.)
        closed: whether it has ended, or never measured on this rank.
    """

    _repr_mimebundle_: Callable[..., dict[str, Any]]  # for notebooks: the chart of `history`
    findings: Callable[..., list[str]]  # `monitor.findings()`: what stands out in `history`, the most important first

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        every: int = 1,
        log_every: int = 50,
        histogram_every: int | None = None,
        delivery: Delivery | None = None,
        idle: bool = False,
        ranks: Ranks | None = None,
        share: bool = False,
        find_again: Callable[[Sequence[torch.optim.Optimizer]], list[Layer]] | None = None,
    ) -> None:
        self.layers = list(layers)
        self._delivery = delivery or Delivery(self.layers)
        self._count = StepCount()
        self.every = every
        self.log_every = log_every
        self.histogram_every = histogram_every
        self.closed = self._idle = idle
        if idle:
            return
        self._ranks = ranks
        self._find_again = find_again
        self._new_measuring = partial(
            Measuring, model, self.layers, log_every, ranks, share, histogram_every, self._count, self._delivery
        )
        self._measuring = self._new_measuring()
        self._capturing = Capturing()
        self._steps = CompleteSteps(optimizers, self._after_step, self._capturing)
        self._note_loads = partial(watch_loading, model, self.layers, self._note_loading)
        self._loading_hooks = self._note_loads()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"Monitor(layers: {len(self.layers)}, step: {self.step}, measurements: {len(self.history)}, {state})"

    @property
    def step(self) -> int:
        return self._count.step

    @step.setter
    def step(self, step: int) -> None:
        self._count.step = index(step)

    @property
    def history(self) -> History:
        return self._delivery.history

    def measure(self, step: int | None = None) -> None:
        """Measure now, against the weights at the last measurement. For `watch(model)` without an optimizer.

        Args:
            step: what to note as this measurement's step; by default one more than the last.
        """
        if not self.closed and self._capturing():
            return
        self.step = self.step + 1 if step is None else step
        if not self.closed:
            self.guarded(self._measure)

    def flush(self) -> None:
        """Wait for what was measured, put it into `history` and hand over a row of what has not been in one yet.

        Where weights are sharded or measuring is shared, every rank must call it.
        """
        if not self.closed and not self._capturing():
            self.guarded(partial(self._measuring.flush, "flush"))

    def close(self) -> None:
        """Flush, save and log what remains, and remove all hooks. Calling it again does nothing.

        Where weights are sharded or measuring is shared, every rank must call it: else what is in no row yet is lost.
        """
        if not self.closed and self._capturing():
            return
        if not self.closed:
            self._steps.finish()
            self.guarded(self._warn_of_unseen_steps)
            self.guarded(partial(self._measuring.flush, "close"))
        if not self.closed:
            self.guarded(self._release)
            self.guarded(self._delivery.end)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the series as if it had never stopped: tensors and plain values only.

        The snapshots are whole, or all that is drawn of a layer, on the CPU: so another number of ranks can load them.
        A closed monitor has freed them; its state is continued where the model has loaded the weights that it measured
        last before `load_state_dict`, else the first RWC is NaN.

        Returns:
            `step`, counters, `layers`, `history` and `snapshots` (by layer); {} on ranks other than 0, all of which
            must call it where weights are sharded or measuring is shared; {} also while a CUDA graph is captured.
        """
        state: dict[str, Any] = {}
        if not self._idle and not self._capturing():
            self.guarded(lambda: state.update(self._state()))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the series that rank 0's `state_dict` has saved. Call it on every rank, before training goes on.

        Weights that the model loads from here to the next measurement are those of the checkpoint: no jump.

        Raises:
            UserError: the state is another model's, or not rank 0's.
        """
        if self._idle:
            return
        history, snapshots, counters = unpack(state, self.layers, self.history)
        if self._ranks is not None:
            self._ranks.meet("load_state_dict", f"at step {counters['step']}", self._ranks.start_timeout)
        self._measuring.resume(snapshots, counters)
        self._delivery.resume(history, counters)
        self._count.resume(counters)
        self._steps.resume(counters.get("begun", {}))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _after_step(self, found_inf: Sequence[Tensor | None]) -> None:
        self._count.note(found_inf)
        if self._count.calls >= self.every:
            self.guarded(self._measure)
        elif not self._measuring.is_idle:
            self.guarded(self._measuring.receive)

    def _measure(self) -> None:
        self._measuring.measure(self.every)
        if self._steps.has_new_groups:
            self._steps.has_new_groups = False
            self._add_layers()

    def _note_loading(self, indices: set[int]) -> None:
        self._measuring.note_loading(indices)

    def _add_layers(self) -> None:
        """Track what the optimizers' groups hold by now; snapshots are taken of what has just been measured."""
        found = self._find_again(self._steps.optimizers()) if self._find_again else []
        layers = merged_layers(self.layers, found)
        if len(layers) == len(self.layers):
            return
        self._measuring.flush("a new parameter group")
        self.layers[:] = layers
        self._delivery.set_layers(layers)
        self._measuring = self._new_measuring()
        for hook in self._loading_hooks:
            hook.remove()
        self._loading_hooks = self._note_loads()

    def guarded(self, action: Callable[[], None]) -> None:
        """Nothing that monitoring does may stop a training run: on any failure, say so once and end."""
        try:
            action()
        except Exception as error:
            if not self.closed:
                leave = [self._ranks.leave] if self._ranks is not None else []
                for act in [self._measuring.abandon, *leave, self._delivery.end_row, self._release, self._delivery.end]:
                    with contextlib.suppress(Exception):
                        act()
            reason = described(error)
            warnings.warn(
                f"rwc_wandb stopped monitoring at optimizer step {self.step}: {reason}. "
                f"Training goes on; {len(self.history)} measurements up to here are in monitor.history.",
                MonitoringStopped,
                stacklevel=3,
            )

    def _warn_of_unseen_steps(self) -> None:
        # A user who calls `measure` knows which call is the last.
        if self._steps.names or not self.step:
            warn_of_unseen_steps(self._steps, self.step, *self._measuring.changed_unseen(), stacklevel=4)

    def _release(self) -> None:
        self.closed = True
        for hook in [self._steps, *self._loading_hooks]:
            hook.remove()
        self._loading_hooks = []
        # `watch` registers it on ranks that measure together: it would keep the model until the interpreter ends.
        atexit.unregister(self.close)
        self._measuring.release()

    def _state(self) -> dict[str, Any]:
        if not self.closed:
            self._measuring.flush("state_dict", ends_row=False)
        if self._ranks is not None:
            self._ranks.meet("state_dict", f"at step {self.step}", self._ranks.patience())
        counters = self._count.counters() | self._measuring.counters() | self._delivery.counters()
        counters["begun"] = self._steps.begun()
        snapshots = {} if self.closed else self._measuring.tracked.whole_snapshots()
        return pack(self.history, snapshots, counters) if self._ranks is None or self._ranks.rank == 0 else {}
