"""Milliseconds of a call, medians and spread of many, and the floor that memory sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], object]
Clock = Callable[[Call], float]
"""Runs a call once and tells its milliseconds."""

SECONDS_PER_METHOD = 6.0
"""A method that would take longer than this in all rounds sits some of them out."""
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some samples."""

    median: float
    low: float
    high: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return Spread(median, low, high, len(values))


def clock_for(device: torch.device) -> Clock:
    return _CudaClock(device) if device.type == "cuda" else _wall_clock


def _wall_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


class _CudaClock:
    """Time on the GPU between two events around the call, which is queued while the GPU is still busy, as it is in a
    training step: launching costs nothing as long as the host is ahead, and every wait for the GPU is paid in full."""

    def __init__(self, device: torch.device) -> None:
        # Writing it eight times keeps an H200 busy for some 0.5 ms, and leaves nothing else in its cache.
        self.filler = torch.empty(1 << 28, dtype=torch.uint8, device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def __call__(self, call: Call) -> float:
        for _ in range(8):
            self.filler.zero_()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end)


class Floor:
    """The least time that a measurement can take: weights and snapshot read once, the snapshot written once.

    These are three passes over n bytes, 12 bytes per fp32 weight. A copy of n bytes to another place makes two: it
    reads n and writes n. So the floor is 1.5 times the time of a copy of exactly as many bytes as the weights have (and
    so as many as fit a cache, or not).

    On a CPU it is, each time, the fastest of three, with torch's number of threads: 1.5 times torch's `copy_`; 1.5
    times numpy's copy in Python threads, which do not wait for each other as torch's do; and numpy's `s += w` in such
    threads, which makes just the three passes. The last is the fastest on processors that read a line of memory before
    they write it: there a copy makes three passes too, and 1.5 of them would flatter every ratio.
    """

    def __init__(self, weights: Sequence[Tensor], clock: Clock) -> None:
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        device = weights[0].device
        self.source = torch.ones(size // 4, dtype=torch.float32, device=device)
        self.target = torch.zeros_like(self.source)
        self.clock = clock
        self.ways: list[tuple[float, Call]] = [(1.5, lambda: self.target.copy_(self.source))]
        """What is timed, and by what its time is multiplied to give that of three passes."""
        if device.type == "cpu":
            threads = torch.get_num_threads()
            pool = ThreadPoolExecutor(threads)
            s, w = (np.array_split(tensor.numpy(), threads) for tensor in (self.target, self.source))
            self.ways.append((1.5, lambda: list(pool.map(np.copyto, s, w))))
            self.ways.append((1.0, lambda: list(pool.map(np.add, s, w, s))))

    def milliseconds(self) -> float:
        return min(factor * warm(way, self.clock) for factor, way in self.ways)


def warm(call: Call, clock: Clock) -> float:
    """Milliseconds of a call right after another one of the same: caches and threads are as it leaves them."""
    call()
    return clock(call)


@dataclass(frozen=True)
class Timing:
    """What was measured of one method.

    Attributes:
        milliseconds: of a measurement.
        ratio: of a measurement to the floor that was measured just before it.
    """

    milliseconds: Spread
    ratio: Spread


def interleaved(
    calls: Mapping[str, Call], floor: Callable[[], float], clock: Clock, rounds: int, before_round: Call
) -> tuple[Timing, dict[str, Timing]]:
    """Time every call once in each round, each right after the floor, which tells its milliseconds itself; returns the
    floor's timing and those of the calls.

    Slow ones sit rounds out, as `SECONDS_PER_METHOD` says. The order changes from round to round.
    """
    every = {name: _stride(warm(call, clock), rounds) for name, call in calls.items()}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    floors: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        before_round()
        start = number % len(names)
        for name in names[start:] + names[:start]:
            if number % every[name] == 0:
                floors[name].append(floor())
                times[name].append(warm(calls[name], clock))
    timings = {
        name: Timing(spread(times[name]), spread([t / f for t, f in zip(times[name], floors[name], strict=True)]))
        for name in names
    }
    all_floors = [value for values in floors.values() for value in values]
    return Timing(spread(all_floors), spread([1.0] * len(all_floors))), timings


def _stride(milliseconds: float, rounds: int) -> int:
    """Every how many rounds a call of so many milliseconds is timed (twice run: once to warm up)."""
    affordable = max(FEWEST_SAMPLES, int(SECONDS_PER_METHOD * 1e3 / (2 * milliseconds)))
    return max(1, rounds // affordable)
