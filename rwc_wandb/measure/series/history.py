"""The series of all measurements: steps x layers, in memory and on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rwc_wandb.errors import UserError
from rwc_wandb.files import whole_file
from rwc_wandb.measure.roles import roles_and_blocks
from rwc_wandb.measure.series.data_frame import data_frame
from rwc_wandb.measure.series.file_content import oddity
from rwc_wandb.measure.series.trends import mean_of_moving

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = "rwc_wandb.history.1"
FILE = "rwc.safetensors"
"""The series' file in the folder of a run; `file_of(prefix)` where its monitor has another prefix than "rwc"."""
_METADATA = ("layers", "stages", "sizes", "steps_per_epoch")
_LATER_METADATA = ("roles", "blocks", "kinds")
"""What the first files of this format lack: `History` then finds it from the names."""
_SERIES = ("steps", "rwc", "rwc_elementwise")


class HistoryError(UserError):
    """A history file that is missing, cut short, or not one of ours; the message says which."""


class History:
    """RWC of L layers at T measurements.

    Attributes:
        layers: the layers' names in forward order.
        stages: the stage of each layer.
        sizes: the number of weights in each layer.
        steps_per_epoch: where it is known, charts show epochs; None otherwise.
        roles: the role of each layer, `self_attn.q_proj`: see `Layer.role`. By default from the names.
        blocks: the block of each layer, an int from 0, or None where it does not repeat. By default from the names.
        kinds: what the module of each layer is, "convolution", "linear" and so on; "" where the file does not say.

    Example:
        >>> import numpy as np
        >>> history = History(layers=["conv1", "fc"], stages=["early", "later"], sizes=[864, 5120])
        >>> values = np.array([[0.5, 0.25], [0.125, 0.0625]])
        >>> history.append(steps=[1, 2], rwc=values, rwc_elementwise=values)
        >>> history.steps, history.rwc.shape
        (array([1, 2]), (2, 2))
        >>> history.rwc[:, history.layers.index("fc")]
        array([0.25  , 0.0625], dtype=float32)

        >>> history.save("rwc.safetensors")
        >>> History.load("rwc.safetensors").layers
        ['conv1', 'fc']
    """

    _repr_mimebundle_: Callable[..., dict[str, Any]]
    """What notebooks show; the package sets it, since charts are drawn above this room."""

    def __init__(
        self,
        layers: Sequence[str],
        stages: Sequence[str],
        sizes: Sequence[int],
        steps_per_epoch: int | None = None,
        roles: Sequence[str] | None = None,
        blocks: Sequence[int | None] | None = None,
        kinds: Sequence[str] | None = None,
    ) -> None:
        self.layers = list(layers)
        self.stages = list(stages)
        self.sizes = list(sizes)
        self.steps_per_epoch = steps_per_epoch
        found = roles_and_blocks(self.layers) if roles is None or blocks is None else (roles, blocks)
        self.roles, self.blocks = list(found[0]), list(found[1])
        self.kinds = [""] * len(self.layers) if kinds is None else list(kinds)
        self._length = 0
        # Arrays double when they are full, so that an append costs the same however long the series is.
        self._steps = np.empty(64, np.int64)
        self._rwc = np.empty((64, len(self.layers)), np.float32)
        self._rwc_elementwise = np.empty((64, len(self.layers)), np.float32)
        self._rwc_error: NDArray[np.float32] | None = None

    @property
    def steps(self) -> NDArray[np.int64]:
        """int64 [T]: the optimizer step after which each measurement was taken, from 1."""
        return self._steps[: self._length]

    @property
    def rwc(self) -> NDArray[np.float32]:
        """float32 [T, L]: eq. 1 of arXiv 2011.06735."""
        return self._rwc[: self._length]

    @property
    def rwc_elementwise(self) -> NDArray[np.float32]:
        """float32 [T, L]: the mean of |w_t - w_{t-1}| / |w_{t-1}| over elements, the authors' variant."""
        return self._rwc_elementwise[: self._length]

    @property
    def rwc_error(self) -> NDArray[np.float32]:
        """float32 [T, L]: the standard error of `rwc` where it is an estimate from a sample (`watch(sample=...)`), in
        its unit; 0 where it is exact, NaN where it is not finite. See `measure.kernels.sampling.standard_error`."""
        if self._rwc_error is None:
            return np.broadcast_to(np.float32(0), self.rwc.shape)
        return self._rwc_error[: self._length]

    def series(self) -> dict[str, NDArray[Any]]:
        """What is saved: `steps`, `rwc`, `rwc_elementwise`; `rwc_error` too where some of it are estimates."""
        return {key: getattr(self, key) for key in _SERIES + ("rwc_error",) * (self._rwc_error is not None)}

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        span = f", steps {self.steps[0]} to {self.steps[-1]}" if len(self) else ""
        return f"History({len(self.layers)} layers, {len(self)} measurements{span})"

    def to_pandas(self) -> DataFrame:
        """A pandas data frame with a row for every layer at every measurement, T L rows in all.

        Its columns are `step` (int64); `layer`, `role`, `block`, `stage` (categories in forward order; no block where a
        layer does not repeat); `rwc`, `rwc_elementwise` and, where some of it are estimates, `rwc_error` (float32, NaN
        and inf as they were measured).

        Raises:
            ModuleNotFoundError: pandas is missing.
        """
        words = {key: getattr(self, f"{key}s") for key in ("layer", "role", "block", "stage")}
        values = self.series()
        return data_frame(values.pop("steps"), words, values)

    def without_measurements(self) -> History:
        """An empty history of the same layers."""
        return History(**{key: getattr(self, key) for key in _METADATA + _LATER_METADATA})

    def append(
        self,
        steps: Sequence[int],
        rwc: NDArray[np.floating],
        rwc_elementwise: NDArray[np.floating],
        rwc_error: NDArray[np.floating] | None = None,
    ) -> None:
        """Add measurements: `steps` [n], `rwc`, `rwc_elementwise` and `rwc_error` [n, L]; no errors: they are exact."""
        start, self._length = self._length, self._length + len(steps)
        if rwc_error is not None and self._rwc_error is None:
            self._rwc_error = np.zeros((len(self._steps), len(self.layers)), np.float32)
        if self._length > len(self._steps):
            rows = max(self._length, 2 * len(self._steps))
            self._steps = _grown(self._steps, rows)
            self._rwc = _grown(self._rwc, rows)
            self._rwc_elementwise = _grown(self._rwc_elementwise, rows)
            self._rwc_error = None if self._rwc_error is None else _grown(self._rwc_error, rows)
        self._steps[start : self._length] = steps
        # A rate above float32's largest number, 3.4e38, is stored as inf.
        with np.errstate(over="ignore"):
            self._rwc[start : self._length] = rwc
            self._rwc_elementwise[start : self._length] = rwc_elementwise
            if self._rwc_error is not None:
                self._rwc_error[start : self._length] = 0 if rwc_error is None else rwc_error

    def take_on(self, wider: History) -> None:
        """Have the layers of `wider`, all of ours among them; what was not measured so far is NaN."""
        columns = [wider.layers.index(name) for name in self.layers]
        for name in ("_rwc", "_rwc_elementwise", "_rwc_error"):
            if getattr(self, name) is None:
                continue
            series = np.full((len(self._steps), len(wider.layers)), np.nan, np.float32)
            series[:, columns] = getattr(self, name)
            setattr(self, name, series)
        for name in ("layers", "stages", "sizes", "roles", "blocks", "kinds"):
            setattr(self, name, getattr(wider, name))

    def frozen(self) -> History:
        """What is there now, which another thread may read while this one appends; nothing is copied."""
        return copy.copy(self)  # with the length of now; later rows go behind it, or into new arrays

    def stage_means(self, values: NDArray[np.floating]) -> tuple[list[str], NDArray[np.float64]]:
        """The mean over each stage's layers of `values` [..., L]: stage names in forward order, means [..., S].

        Layers that are NaN do not count in the mean; where all of a stage are NaN, the mean is NaN.
        """
        names = list(dict.fromkeys(self.stages))
        stages = np.array(self.stages)
        return names, np.stack([mean_of_moving(values[..., stages == name]) for name in names], axis=-1)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `series()`; the other attributes as JSON in its metadata.

        It appears whole or not at all. T measurements of L layers take 8 T + 8 T L bytes, with errors 8 T + 12 T L.

        Raises:
            OSError: it cannot be written.
        """
        metadata = {"format": FORMAT} | {key: json.dumps(getattr(self, key)) for key in _METADATA + _LATER_METADATA}
        try:
            with whole_file(Path(path)) as unfinished:
                save_file(self.series(), unfinished, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what `save` wrote.

        Raises:
            HistoryError: the file is missing, cut short, or not a history.
        """
        path = Path(path)
        if not path.is_file():
            raise HistoryError(f"There is no history file {path}: name an {FILE} that a run has written.")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise HistoryError(f"{path} is not a history of rwc_wandb: it lacks the format {FORMAT!r}.")
                later = [key for key in _LATER_METADATA if key in metadata]
                found = {key: json.loads(metadata[key]) for key in [*_METADATA, *later]}
                names = [*_SERIES, *({"rwc_error"} & set(file.keys()))]
                series = {key: file.get_tensor(key) for key in names}
        # safetensors' errors have no common base, and JSON that another program wrote can raise any of the others.
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, HistoryError):
                raise
            raise HistoryError(f"{path} cannot be read as a history ({error}): was it cut short?") from error
        if odd := oddity(found, series):
            raise HistoryError(f"{path} is not a history that rwc_wandb has written: {odd}.")
        history = cls(**found)
        history.append(**series)
        return history


def file_of(prefix: str) -> str:
    return f"{prefix}.safetensors"


def _grown(values: NDArray[Any], rows: int) -> NDArray[Any]:
    larger = np.empty((rows, *values.shape[1:]), values.dtype)
    larger[: len(values)] = values
    return larger
