"""A history as a data frame of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

    from rwc_wandb.measure.series.history import History


def data_frame(history: History) -> DataFrame:
    """See `History.to_pandas`."""
    try:
        import pandas
    except ImportError:
        raise ModuleNotFoundError(
            "history.to_pandas() needs pandas: pip install pandas. Without it, history.steps and history.rwc are "
            "NumPy arrays.",
            name="pandas",
        ) from None
    words: dict[str, Sequence[Any]] = {"layer": history.layers, "role": history.roles}
    words |= {"block": history.blocks, "stage": history.stages}
    columns: dict[str, Any] = {"step": np.repeat(history.steps, len(history.layers))}
    for name, of_layers in words.items():
        index = {word: code for code, word in enumerate(w for w in dict.fromkeys(of_layers) if w is not None)}
        codes = np.tile([index.get(word, -1) for word in of_layers], len(history)).astype(np.int64)
        columns[name] = pandas.Categorical.from_codes(codes, list(index))
    columns |= {name: getattr(history, name).ravel() for name in ("rwc", "rwc_elementwise", "rwc_error")}
    return pandas.DataFrame(columns)
