"""What a run's owner wants to be told at once: a W&B alert and a warning, once per run and kind."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rwc_wandb.measure.delivery import Window
from rwc_wandb.measure.series.trends import mean_of_known

if TYPE_CHECKING:
    from wandb import Run


class Alerts:
    """Looks at every window of measurements.

    Args:
        run: where alerts are sent.
        layers: names of the layers.
        above: a layer explodes when its mean RWC over a window is finite and above this; None: never said. (It is
            infinite when the layer was all zero before, as zero-initialised ones are.)
        below: a layer has stopped when its mean RWC over a window is below this, and was not in an earlier window; one
            that never moved is frozen, not stopped. None: never said.
    """

    def __init__(self, run: Run, layers: list[str], above: float | None, below: float | None) -> None:
        self.run = run
        self.layers = layers
        self.above = np.inf if above is None else above
        self.below = 0.0 if below is None else below
        self._learned: NDArray[np.bool_] = np.zeros(len(layers), bool)
        self._said: set[str] = set()

    def set_layers(self, layers: list[str], indices: list[int]) -> None:
        """Look at `layers` from here on; those so far have these `indices` among them."""
        learned = np.zeros(len(layers), bool)
        learned[indices] = self._learned
        self.layers, self._learned = layers, learned

    def nonfinite(self, layer: str, step: int, count: int) -> None:
        text = f"{count} weights of layer {layer} are NaN or infinite after optimizer step {step}."
        self._say("Non-finite weights", text, "ERROR")

    def look_at(self, window: Window) -> None:
        means = mean_of_known(window.rwc)
        exploding = np.isfinite(means) & (means > self.above)
        stopped = self._learned & (means < self.below)
        self._learned |= means >= self.below
        for title, found, limit in (("Exploding layer", exploding, self.above), ("Stopped layer", stopped, self.below)):
            if found.any():
                layer = int(found.argmax())
                others = f" (and {found.sum() - 1} others)" if found.sum() > 1 else ""
                text = (
                    f"The mean RWC of layer {self.layers[layer]}{others} up to optimizer step {window.steps[-1]} is "
                    f"{means[layer]:.3g}: {'above' if limit == self.above else 'below'} {limit:g}."
                )
                self._say(title, text, "WARN")

    def _say(self, title: str, text: str, level: Literal["WARN", "ERROR"]) -> None:
        if title not in self._said:
            self._said.add(title)
            warnings.warn(f"rwc_wandb: {text}", stacklevel=2)
            self.run.alert(title=title, text=text, level=level)
