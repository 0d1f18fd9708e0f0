"""A series as a data frame of pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame


def data_frame(
    steps: NDArray[np.int64], words: Mapping[str, Sequence[Any]], values: Mapping[str, NDArray[np.float32]]
) -> DataFrame:
    """A row for every layer at every step: `step`, what is said of each layer, `words` [L], as categories in the order
    in which they come (None: of none), and `values` [T, L].

    Raises:
        ModuleNotFoundError: pandas is missing.
    """
    try:
        import pandas
    except ImportError:
        raise ModuleNotFoundError(
            "history.to_pandas() needs pandas: pip install pandas. Without it, history.steps and history.rwc are "
            "NumPy arrays.",
            name="pandas",
        ) from None
    layers = next(len(of_layers) for of_layers in words.values())
    columns: dict[str, Any] = {"step": np.repeat(steps, layers)}
    for name, of_layers in words.items():
        index = {word: code for code, word in enumerate(w for w in dict.fromkeys(of_layers) if w is not None)}
        codes = np.tile([index.get(word, -1) for word in of_layers], len(steps)).astype(np.int64)
        columns[name] = pandas.Categorical.from_codes(codes, list(index))
    return pandas.DataFrame(columns | {name: series.ravel() for name, series in values.items()})
