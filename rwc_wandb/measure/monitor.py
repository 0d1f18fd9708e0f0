"""The hook: when to measure, what to compare with, and how the numbers come back without a synchronisation."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwc_wandb.measure.history import History
from rwc_wandb.measure.kernels import Statistic, rates
from rwc_wandb.measure.layers import Layer, find_layers
from rwc_wandb.measure.window import Histograms, HostCopy, device_windows

HISTOGRAM_BINS = 64


class MonitoringStopped(UserWarning):
    """Something failed while measuring or logging: training goes on without monitoring."""


@dataclass
class Window:
    """The measurements since the last row.

    Attributes:
        steps: int64 [n], the optimizer steps.
        rwc, rwc_elementwise: float32 [n, L].
    """

    steps: NDArray[np.int64]
    rwc: NDArray[np.float32]
    rwc_elementwise: NDArray[np.float32]


class Consumer(Protocol):
    """What takes a monitor's numbers: the W&B rows, for one."""

    def row(self, window: Window) -> None: ...
    def histograms(self, histograms: Histograms) -> None: ...
    def nonfinite(self, layer: str, step: int, count: int) -> None: ...
    def close(self, history: History) -> None: ...


class Monitor:
    """Measures the Relative Weight Change of a model's layers as its optimizer steps. `rwc_wandb.watch` makes one.

    Attributes:
        layers: the tracked layers, in forward order.
        history: every measurement so far that the host has read; complete after `flush` or `close`.
        step: optimizer steps counted so far.
        closed: whether it has ended, or never measured on this rank.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        every: int = 1,
        log_every: int = 50,
        histogram_every: int | None = None,
        consumer: Consumer | None = None,
        idle: bool = False,
    ) -> None:
        self.layers = list(layers)
        self.history = History(
            [layer.name for layer in layers],
            [layer.stage for layer in layers],
            [layer.parameter.numel() for layer in layers],
        )
        self.step = 0
        self.every = every
        self.log_every = log_every
        self.histogram_every = histogram_every
        self._model = model
        self._consumer = consumer
        self._hooks: list[Any] = []
        self.closed = idle
        if idle:
            return
        self._windows = device_windows([layer.parameter.detach() for layer in self.layers], log_every)
        self._note_layout()
        self._unread: list[int] = []
        self._reading: tuple[list[int], list[HostCopy], list[tuple[int, set[int]]]] | None = None
        self._reading_histograms: tuple[int, list[HostCopy]] | None = None
        self._jumped: set[int] = set()
        self._gone: set[int] = set()
        self._jumps: list[tuple[int, set[int]]] = []
        self._rows_until = 0
        self._alerted = False
        # With several optimizers for one model a step is complete when the last of them has stepped.
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in optimizers[-1:]]
        self._hooks += self._watch_loading()

    def measure(self, step: int | None = None) -> None:
        """Measure now, against the weights at the last measurement. For `watch(model)` without an optimizer.

        Args:
            step: what to note as this measurement's step; by default one more than the last.
        """
        self.step = self.step + 1 if step is None else step
        if not self.closed:
            self.guarded(self._measure)

    def flush(self) -> None:
        """Wait for what was measured, put it into `history` and hand over a row of what has not been in one yet."""
        if not self.closed:
            self.guarded(self._flush)

    def close(self) -> None:
        """Flush, save and log what remains, and remove all hooks. Calling it again does nothing."""
        self.flush()
        if not self.closed:
            self._release()
            if self._consumer is not None:
                self.guarded(partial(self._consumer.close, self.history))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _after_step(self, *_: object) -> None:
        self.step += 1
        if self.step % self.every == 0:
            self.guarded(self._measure)
        elif self._reading or self._reading_histograms:
            self.guarded(self._receive)

    def guarded(self, action: Callable[[], None]) -> None:
        """Nothing that monitoring does may stop a training run: on any failure, say so once and end."""
        try:
            action()
        except Exception as error:
            if not self.closed:
                with contextlib.suppress(Exception):
                    self._flush()
                self._release()
                with contextlib.suppress(Exception):
                    if self._consumer is not None:
                        self._consumer.close(self.history)
            warnings.warn(
                f"rwc_wandb stopped monitoring at optimizer step {self.step}: {type(error).__name__}: {error}. "
                f"Training goes on; {len(self.history)} measurements up to here are in monitor.history.",
                MonitoringStopped,
                stacklevel=3,
            )

    def _release(self) -> None:
        self.closed = True
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._windows = []

    @torch.no_grad()
    def _measure(self) -> None:
        self._receive()
        if self._layout_changed():
            self._follow_layout()
        if self.histogram_every and self.step % self.histogram_every < self.every:
            self._reading_histograms = (self.step, [window.histograms(HISTOGRAM_BINS) for window in self._windows])
        slot = len(self._unread)
        for window in self._windows:
            window.measure(slot)
        if self._jumped or self._gone:
            self._jumps.append((slot, self._jumped | self._gone))
            self._jumped = set()
        self._unread.append(self.step)
        if len(self._unread) + len(self.history) - self._rows_until >= self.log_every:
            self._start_reading()
        self._receive()

    def _start_reading(self) -> None:
        self._receive(wait=True)
        if self._unread:
            self._reading = (self._unread, [window.read(len(self._unread)) for window in self._windows], self._jumps)
            self._unread, self._jumps = [], []

    def _receive(self, wait: bool = False) -> None:
        """Take in what has arrived on the host."""
        if self._reading and (wait or all(copy.arrived() for copy in self._reading[1])):
            (steps, copies, jumps), self._reading = self._reading, None
            self._take_in(steps, [copy.wait()[0] for copy in copies], jumps)
            if len(self.history) - self._rows_until >= self.log_every:
                self._hand_over_row()
        if self._reading_histograms and (wait or all(copy.arrived() for copy in self._reading_histograms[1])):
            (step, copies), self._reading_histograms = self._reading_histograms, None
            counts, ranges = zip(*(copy.wait() for copy in copies), strict=True)
            if self._consumer is not None:
                order = torch.tensor([index for window in self._windows for index in window.indices]).argsort()
                joined = Histograms(step, torch.cat(counts, 1)[:, order], torch.cat(ranges, 1)[:, order])
                self._consumer.histograms(joined)

    def _take_in(self, steps: list[int], parts: list[Tensor], jumps: list[tuple[int, set[int]]]) -> None:
        statistics = torch.empty(len(steps), len(self.layers), len(Statistic), dtype=torch.float64)
        for window, part in zip(self._windows, parts, strict=True):
            statistics[:, window.indices] = part
        rwc, rwc_elementwise = rates(statistics)
        for slot, indices in jumps:
            rwc[slot, list(indices)] = torch.nan
            rwc_elementwise[slot, list(indices)] = torch.nan
        self.history.append(steps, rwc.numpy(), rwc_elementwise.numpy())
        nonfinite = statistics[..., Statistic.NONFINITE]
        if self._consumer is not None and not self._alerted and nonfinite.any():
            slot, index = nonfinite.nonzero()[0].tolist()
            self._alerted = True
            self._consumer.nonfinite(self.layers[index].name, steps[slot], int(nonfinite[slot, index]))

    def _hand_over_row(self) -> None:
        since, self._rows_until = self._rows_until, len(self.history)
        if self._consumer is not None and since < self._rows_until:
            history = self.history
            self._consumer.row(Window(history.steps[since:], history.rwc[since:], history.rwc_elementwise[since:]))

    def _flush(self) -> None:
        self._start_reading()
        self._receive(wait=True)
        self._hand_over_row()

    def _watch_loading(self) -> list[Any]:
        """After a `load_state_dict` the next measurement would compare across a jump: it becomes NaN."""
        owners = {id(layer.path[-1][0]): set[int]() for layer in self.layers}
        for index, layer in enumerate(self.layers):
            owners[id(layer.path[-1][0])].add(index)

        def noting(indices: set[int]) -> Callable[..., None]:
            return lambda *_: self._jumped.update(indices)

        modules = {id(module._parameters): module for module in self._model.modules()}
        return [modules[owner].register_load_state_dict_post_hook(noting(owners[owner])) for owner in owners]

    def _note_layout(self) -> None:
        edges = [edge for layer in self.layers for edge in layer.path]
        self._edges = list({(id(mapping), key): (mapping, key, expected) for mapping, key, expected in edges}.values())
        self._parameters = [layer.parameter for layer in self.layers]
        self._addresses = [parameter.data_ptr() for parameter in self._parameters]

    def _layout_changed(self) -> bool:
        """Whether a weight was replaced, resized or moved since the last look; a few dictionary look-ups per layer."""
        if [parameter.data_ptr() for parameter in self._parameters] != self._addresses:
            return True
        return any(mapping.get(key) is not expected for mapping, key, expected in self._edges)

    def _follow_layout(self) -> None:
        """Track what now stands in the place of replaced, resized or moved weights; their next value is NaN."""
        self._flush()
        snapshots = {i: s for window in self._windows for i, s in zip(window.indices, window.snapshots, strict=True)}
        present = find_layers(self._model, lambda name, parameter: True)
        by_identity = {id(layer.parameter): layer for layer in present}
        by_name = {layer.name: layer for layer in present}
        changed = []
        for index, (layer, address) in enumerate(zip(self.layers, self._addresses, strict=True)):
            found = by_identity.get(id(layer.parameter)) or by_name.get(layer.name)
            if found is None or found.parameter is not layer.parameter or found.parameter.data_ptr() != address:
                changed.append(index)
            if found is not None:
                layer.parameter, layer.path = found.parameter, found.path
            else:
                layer.path = []
                self._gone.add(index)
        self._windows = device_windows([layer.parameter.detach() for layer in self.layers], self.log_every)
        for window in self._windows:
            for index, snapshot in zip(window.indices, window.snapshots, strict=True):
                if index not in changed:
                    snapshot.copy_(snapshots[index])
        self._note_layout()
        self._jumped.update(changed)
        if changed:
            names = ", ".join(self.layers[index].name for index in changed[:5]) + (", ..." if len(changed) > 5 else "")
            warnings.warn(
                f"rwc_wandb: the weights of {len(changed)} layers ({names}) were replaced, resized or moved before "
                f"step {self.step}: their snapshots are taken anew and their RWC at this step is NaN.",
                stacklevel=2,
            )
