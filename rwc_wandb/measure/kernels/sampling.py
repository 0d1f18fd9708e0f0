"""Which of a layer's weights are compared where a sample stands for all, and the error that this leaves.

A layer of N elements, of which n at most may be drawn, is cut into slices of k = ceil(N / n), and one element is drawn
from each: by draw number t from slice i, element

    i k + floor(u k),    u = hash(key, t, i) / 2^31,

left out where it lies beyond N. So every element is drawn with probability 1 / k, and none twice. The places follow
from four numbers, in integer arithmetic that all kernels do alike: no list of them is kept, and they ascend, as memory
is best read. Slices 2j and 2j + 1 are a pair, which tells the error.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of the 32-bit finaliser "lowbias32" (C. Wellons, *Prospecting for Hash Functions*, 2018)."""


@dataclass(frozen=True)
class Sample:
    """The part of a layer's sample that stands among elements start..stop of it, those that this rank has.

    Attributes:
        size: the elements N of the whole layer.
        count: the most elements n to be drawn, fewer than N: at least n / 2 are.
        key: 32 bits that tell the random numbers of this layer from others': see `key_of`.
        start, stop: the rank's elements, in an order in which every rank's are consecutive.
    """

    size: int
    count: int
    key: int
    start: int
    stop: int

    @cached_property
    def length(self) -> int:
        """The length k of a slice."""
        return -(-self.size // self.count)

    @cached_property
    def first(self) -> int:
        """The first slice of the first pair that reaches into the rank's elements: even."""
        return self.start // (2 * self.length) * 2

    @cached_property
    def last(self) -> int:
        """The slice after the last pair that reaches into them: even, and beyond the layer where a slice lacks its
        partner."""
        return -(-self.stop // (2 * self.length)) * 2 if self.stop > self.start else self.first

    @cached_property
    def slots(self) -> int:
        """The slices of the whole layer, with those beyond it."""
        return -(-self.size // (2 * self.length)) * 2

    @cached_property
    def spread(self) -> float:
        """1 - 1 / k, by which `standard_error` expects the squares and products to be multiplied."""
        return 1 - 1 / self.length

    def places(self, draw: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [last - first], ascending: the element, of the whole layer, drawn from each slice of the rank's.

        Those of its first pair may be another rank's, below `start`; those of its last at `stop` or beyond.
        """
        slices = torch.arange(self.first, self.last, device=device)
        return slices * self.length + (hashed(slices, self.key, draw) * self.length >> 31)

    def write(self, whole: Tensor, part: Tensor, draw: int) -> None:
        """Write the rank's elements of a draw, by slice, into the whole layer's: `whole` [slots], on the host."""
        places = self.places(draw)
        ours = (places >= self.start) & (places < self.stop)
        whole[self.first : self.last][ours] = part[ours]


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
    """The standard error of R = sum d / sum v, over the drawn of the pairs d = |w - s|, v = |s|.

    With e = d - R v, and a and b the elements drawn from slices 2j and 2j + 1:

        SE^2 = (1 - 1/k) sum_j (e_a - e_b)^2 / (sum v)^2
             = (1 - 1/k) sum_j ((d_a - d_b)^2 - 2 R (d_a - d_b) (v_a - v_b) + R^2 (v_a - v_b)^2) / (sum v)^2

    Only neighbours are compared, since only what differs within a slice is left to chance. The formula for elements
    drawn from all over the layer, (1 - n/N) / n * (CV_d^2 + CV_v^2 - 2 rho CV_d CV_v), is 2 to 5 times too large in
    an embedding, whose rows differ.
    Source: W. G. Cochran, *Sampling Techniques*, 3rd ed. 1977, sections 5A.12 (one unit per stratum: collapsed strata)
    and 6.3 to 6.5 (ratio estimators).

    Args:
        change, norm: sum d and sum v.
        change_2, norm_2, product: the sums over pairs of (d_a - d_b)^2, (v_a - v_b)^2 and (d_a - d_b) (v_a - v_b), each
            times `Sample.spread`; a pair of which an element is another rank's, or beyond the layer, is left out. All 0
            where every element was measured: then the error is 0.

    Returns:
        The error, in the unit of R, which has none; 0 where nothing changed, NaN where R is not finite.
    """
    rate = change / norm
    squares = (change_2 - 2 * rate * product + rate.square() * norm_2).clamp(min=0)
    error = squares.sqrt() / norm
    return torch.where(change == 0, 0.0, torch.where(error.isfinite(), error, torch.nan))
