"""Which of a layer's weights are compared where a sample stands for all, and the error that this leaves.

A layer of N elements is cut into n equal slices, and one element is drawn from each: by draw k from slice i, element

    floor((i + u) N / n),    u = hash(key, k, i) / 2^31,

so that every element is drawn with the same probability. The places follow from four numbers, in integer arithmetic
that all kernels do alike: no list of them is kept, and they ascend, as memory is best read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
LOW = 0x7FFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of the 32-bit finaliser "lowbias32" (C. Wellons, *Prospecting for Hash Functions*, 2018)."""


@dataclass(frozen=True)
class Sample:
    """The part of a layer's sample that stands among elements start..stop of it, those that this rank has.

    Attributes:
        size: the elements N of the whole layer.
        count: the elements n in its sample, at least 2 and fewer than N.
        key: 32 bits that tell the random numbers of this layer from others': see `key_of`.
        start, stop: the rank's elements, in an order in which every rank's are consecutive.
    """

    size: int
    count: int
    key: int
    start: int
    stop: int

    @cached_property
    def shift(self) -> int:
        """The binary places of `step`: as many as 63 bits have for N."""
        return 62 - self.size.bit_length()

    @cached_property
    def step(self) -> int:
        """The length of a slice, N / n elements, in units of 2^-shift."""
        return (self.size << self.shift) // self.count

    @cached_property
    def first(self) -> int:
        """The first slice that reaches into the rank's elements."""
        return min((self.start << self.shift) // self.step, self.count)

    @cached_property
    def last(self) -> int:
        """The slice after the last one that reaches into them."""
        reached = -(-(self.stop << self.shift) // self.step) if self.stop > self.start else self.first
        return min(reached, self.count)

    @cached_property
    def spread(self) -> float:
        """(1 - n / N) n / (n - 1), by which `standard_error` expects the squares and products to be multiplied."""
        return (1 - self.count / self.size) * self.count / (self.count - 1)

    def places(self, draw: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [last - first], ascending: the element, of the whole layer, drawn from each slice of the rank's.

        Its first and its last may be another rank's: below `start`, or `stop` and more.
        """
        slices = torch.arange(self.first, self.last, device=device)
        random = hashed(slices, self.key, draw)
        # random * step / 2^31 without overflow, in two parts.
        offset = random * (self.step >> 31) + ((random * (self.step & LOW)) >> 31)
        return (slices * self.step + offset) >> self.shift


def key_of(seed: int, layer: str) -> int:
    """32 bits from a seed and a layer's name, the same in every process."""
    return zlib.crc32(f"{seed} {layer}".encode())


def hashed(slices: Tensor, key: int, draw: int) -> Tensor:
    """int64, uniform over 0..2^31 - 1: the random number of each of these slices (int64, below 2^31)."""
    return _mixed((_mixed((slices + key) & MASK) + draw) & MASK) >> 1


def _mixed(bits: Tensor) -> Tensor:
    # The second multiplier less 2^32 has the same low bits, and its products fit into 64 bits.
    first, second = MULTIPLIERS[0], MULTIPLIERS[1] - (1 << 32)
    bits = ((bits ^ (bits >> 16)) * first) & MASK
    bits = ((bits ^ (bits >> 15)) * second) & MASK
    return bits ^ (bits >> 16)


def standard_error(change: Tensor, norm: Tensor, change_2: Tensor, norm_2: Tensor, product: Tensor) -> Tensor:
    """The standard error of R = sum d / sum v, of a random sample of n from N pairs d = |w - s|, v = |s|.

        SE^2 = (1 - n/N) n / (n - 1) * sum (d - R v)^2 / (sum v)^2

    which is the textbook's R^2 (1 - n/N) / n * (CV_d^2 + CV_v^2 - 2 rho CV_d CV_v), with CV the coefficients of
    variation and rho the correlation in the sample. The draw from slices, stratified, makes it slightly too large.
    Source: W. G. Cochran, *Sampling Techniques*, 3rd ed. 1977, sections 2.11 and 6.3 to 6.5 (ratio estimators).

    Args:
        change, norm: sum d and sum v.
        change_2, norm_2, product: sum d^2, sum v^2 and sum d v, each times `Sample.spread`; all 0 where every element
            was measured: then the error is 0.

    Returns:
        The error, in the unit of R, which has none; 0 where nothing changed, NaN where R is not finite.
    """
    rate = change / norm
    squares = (change_2 - 2 * rate * product + rate.square() * norm_2).clamp(min=0)
    error = squares.sqrt() / norm
    return torch.where(change == 0, 0.0, torch.where(error.isfinite(), error, torch.nan))
