"""How measurements are taken: of the weights as they are now, against their snapshots, and on to the host."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwc_wandb.measure.delivery import Delivery
from rwc_wandb.measure.device.batches import Measurement
from rwc_wandb.measure.device.histograms import HistogramsUnderway
from rwc_wandb.measure.device.readback import Arrived, ReadBack
from rwc_wandb.measure.distributed.ranks import Ranks, finished
from rwc_wandb.measure.kernels.flat_memory import checksum
from rwc_wandb.measure.layers import Layer, counted
from rwc_wandb.measure.series.state import Snapshot
from rwc_wandb.measure.steps.count import StepCount
from rwc_wandb.measure.tracked import TrackedWeights

MOST_DRAWS = 1 << 31
SECONDS_ON_DEVICE = 20.0
"""Measurements are sent to the host after that long, though no row is due."""


class Measuring:
    """Measures `layers` when it is told to, and gives what has arrived on the host to `delivery`.

    Attributes:
        tracked: the weights and their snapshots.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        log_every: int,
        ranks: Ranks | None,
        share: bool,
        histogram_every: int | None,
        count: StepCount,
        delivery: Delivery,
    ) -> None:
        self.tracked = TrackedWeights(model, layers, log_every, ranks, share, histogram_every is not None)
        self._model = model
        self._layers = layers
        self._log_every = log_every
        self._histogram_every = histogram_every
        self._ranks = ranks
        self._count = count
        self._delivery = delivery
        self._readback = self._new_readback()
        self._in_row = 0
        self._sent_at = time.monotonic()
        self._jumped: set[int] = set()
        self._checksum: Tensor | None = None
        self._resumed = False
        self._stood: bool | None = None
        self._calls = count.step - count.calls

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way to the host."""
        return self._readback.is_idle

    @torch.no_grad()
    def measure(self, every: int) -> None:
        """Measure the last of `every` steps, without waiting for the device."""
        self.receive()
        if self.tracked.changed() and not self.tracked.move():
            self._follow_weights()
        groups, count, histograms = self.tracked.groups, self._count, None
        self._calls += count.calls or 1
        # Several ranks must make them alike, but learn at different times that steps were skipped.
        step = count.step if self._ranks is None else self._calls
        if self._histogram_every and step % self._histogram_every < every:
            histograms = HistogramsUnderway(groups, len(self._layers), self._ranks)
        if groups and self._readback.slot == len(groups[0].buffer):
            # An interrupt (Ctrl-C in a notebook) came between the last measurement of a row and its sending.
            self._readback.leave(groups)
        for group in groups:
            group.measure(self._readback.slot)
        jumped = self._jumped | self.tracked.gone
        self._readback.take(Measurement(count.step, count.calls, count.flags, jumped, histograms), groups)
        count.start_over()
        self._jumped, self._resumed, self._stood = set(), False, None
        self._in_row += 1
        is_row = self._in_row >= self._log_every
        # Several ranks must send alike, and their clocks differ.
        is_late = self._ranks is None and time.monotonic() - self._sent_at > SECONDS_ON_DEVICE
        if is_row or is_late:
            self._readback.send(groups, ends_row=is_row)
            self._sent_at = time.monotonic()
        if is_row:
            self._in_row = 0
            self.tracked.draw((self.tracked.drawn + 1) % MOST_DRAWS)
        self.receive()

    def receive(self) -> None:
        """Take in what has arrived on the host."""
        self._readback.advance()

    def flush(self, name: str, ends_row: bool = True) -> None:
        """Wait for all that was measured; on several ranks, all must come here for `name`."""
        self._readback.finish(self.tracked.groups, name, ends_row)
        if ends_row:
            self._in_row = 0

    def abandon(self) -> None:
        """After a failure: deliver what is there without other ranks."""
        self._readback.abandon(self.tracked.groups)

    def note_loading(self, indices: set[int]) -> None:
        """The model has loaded the weights of these layers.

        They jump, unless they are again what was measured last, as when an average was swapped in and out.
        """
        if self._resumed:
            return
        if self._stood is None:
            # Once between two measurements: it looks at all layers, and a model calls for each of its modules.
            self._stood = not self.tracked.changed()
        is_known = self._stood and self._count.calls == 0
        moved = self.tracked.moved(indices) if is_known else indices
        self._jumped |= moved
        self._jumped -= indices - moved

    def changed_unseen(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights that have moved since the last measurement though no step was seen and none were loaded; if weights
        were replaced instead, all that the model has now."""
        if self._count.calls > 0 or self._jumped or self._resumed:
            return [], []
        if self.tracked.changed():
            return [], list(self._model.parameters())
        return [self._layers[index].parameter for index in self.tracked.moved(range(len(self._layers)))], []

    def release(self) -> None:
        """Free the snapshots. Their checksum stays: it tells `resume` whether weights are what was measured last."""
        try:
            self._checksum = checksum(self.tracked.snapshots().values())
        finally:
            self.tracked.groups = []

    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps, beside the snapshots. On several ranks, all must call it."""
        counters = {"in_row": self._in_row, "jumped": sorted(self._jumped), "drawn": self.tracked.drawn}
        return counters if self._checksum is None else counters | {"checksum": self._of_all_ranks(self._checksum)}

    def resume(self, snapshots: dict[int, Snapshot], counters: dict[str, Any]) -> None:
        """Go on from a checkpoint; what was measured here before belongs to another series."""
        if self.tracked.changed():
            self.tracked.follow()
        if self._ranks is not None:
            # What one rank has begun, all must begin: else what comes next would be added to it.
            self._readback.advance(wait=True)
        self._readback = self._new_readback()
        self._calls = counters["step"] - counters["calls"]
        self.tracked.draw(counters.get("drawn", 0))
        fitting = {index for index, snapshot in snapshots.items() if self.tracked.restore(index, snapshot)}
        if others := sorted(set(snapshots) - fitting):
            warnings.warn(
                f"rwc_wandb: the state was saved with other samples of "
                f"{counted([self._layers[index].name for index in others])}: their RWC is NaN once, and then of "
                "this run's. The same sample= and the same sharding avoid that.",
                stacklevel=2,
            )
        unknown = set(range(len(self._layers))) - fitting
        if "checksum" in counters:
            # The monitor had closed before it was saved, and has no snapshots: are the weights here the same?
            for group in self.tracked.groups:
                group.renew()
            if self._of_all_ranks(checksum(self.tracked.snapshots().values())) == counters["checksum"]:
                unknown = set()
        self._in_row = counters["in_row"]
        self._jumped, self._resumed = set(counters["jumped"]) | unknown, True

    def _of_all_ranks(self, part: Tensor) -> int:
        """The checksum of whole layers."""
        total = part.clone()
        if self._ranks is not None:
            finished(self._ranks.sum(total), self._ranks.patience())
        return int(total) % (1 << 32)

    def _new_readback(self) -> ReadBack:
        return ReadBack(
            (len(self._layers), self.tracked.columns), self._ranks, self._take_in, self._delivery.take_histograms
        )

    def _take_in(self, arrived: Arrived) -> None:
        self._count.step -= arrived.skipped
        self._delivery.take_in(arrived)

    # Snapshots that are taken within the user's inference mode could not be written to outside it.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _follow_weights(self) -> None:
        self._readback.leave(self.tracked.groups)
        jumped, changed = self.tracked.follow()
        self._jumped |= jumped
        if changed:
            warnings.warn(
                f"rwc_wandb: the weights of {counted(changed)} were replaced, resized or removed "
                f"before step {self._count.step}: their snapshots are taken anew and their RWC at this step is "
                "NaN.",
                stacklevel=2,
            )
