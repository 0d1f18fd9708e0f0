"""Where measurements end: in the history, and in the rows of whoever takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rwc_wandb.measure.consumer import Consumer, Window
from rwc_wandb.measure.device.readback import Arrived
from rwc_wandb.measure.kernels import Statistic, rates
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.series.history import History


class Delivery:
    """Takes in what arrives.

    Attributes:
        history: every measurement so far.
        rows_until: how many of them have been in a row.
        alerted: whether the consumer knows of a weight that is not finite.
    """

    def __init__(self, layers: Sequence[Layer], consumer: Consumer | None) -> None:
        names, stages = [layer.name for layer in layers], [layer.stage for layer in layers]
        self.history = History(names, stages, [layer.size for layer in layers])
        self.rows_until = 0
        self.alerted = False
        self.consumer = consumer

    def take_in(self, arrived: Arrived) -> None:
        rwc, rwc_elementwise = rates(arrived.statistics)
        self.history.append(arrived.steps, rwc.numpy(), rwc_elementwise.numpy())
        nonfinite = arrived.statistics[..., Statistic.NONFINITE].numpy()
        if self.consumer is not None and not self.alerted and nonfinite.any():
            slot, index = np.argwhere(nonfinite)[0].tolist()
            self.alerted = True
            self.consumer.nonfinite(self.history.layers[index], arrived.steps[slot], int(nonfinite[slot, index]))
        if arrived.ends_row:
            self.hand_over_row()

    def hand_over_row(self) -> None:
        since, self.rows_until = self.rows_until, len(self.history)
        if self.consumer is not None and since < self.rows_until:
            history = self.history
            self.consumer.row(Window(history.steps[since:], history.rwc[since:], history.rwc_elementwise[since:]))

    def close(self) -> None:
        if self.consumer is not None:
            self.consumer.close(self.history)
