"""Which weights are drawn, and whether the error that the sample tells is the error that it makes."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from rwc_wandb.measure.kernels.sampling import MULTIPLIERS, Sample, hashed, key_of, standard_error

SIZES = [(1000, 999), (1000, 2), (65_537, 65_536), (123_457, 1000), (1 << 33, 5000), ((1 << 34) + 12_345, 4099)]


def plain_hash(number: int) -> int:
    for multiplier, first in zip(MULTIPLIERS, (16, 15), strict=True):
        number = ((number ^ (number >> first)) * multiplier) % 2**32
    return number ^ (number >> 16)


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_places_are_those_of_whole_numbers_without_a_limit(size: int, count: int) -> None:
    sample = Sample(size, count, key_of(3, "fc"), 0, size)
    found = sample.places(draw=7).tolist()
    assert sample.length == math.ceil(size / count)
    assert len(found) == 2 * math.ceil(size / sample.length / 2)
    for i, place in enumerate(found):
        random = plain_hash((plain_hash((i + sample.key) % 2**32) + 7) % 2**32) >> 1
        assert place == i * sample.length + random * sample.length // 2**31
    assert (np.diff(found) > 0).all()
    drawn = sum(place < size for place in found)
    assert count / 2 <= drawn <= count


@pytest.mark.parametrize(("size", "count"), SIZES)
def test_ranks_draw_together_what_one_draws_alone(size: int, count: int) -> None:
    whole = Sample(size, count, 99, 0, size).places(4)
    bounds = [0, 0, size // 7, size // 7, size // 7 + 1, size // 2, size - 1, size, size]
    parts = []
    for start, stop in pairwise(bounds):
        part = Sample(size, count, 99, start, stop)
        places = part.places(4)
        assert len(places) <= (stop - start) / part.length + 4
        assert part.first % 2 == part.last % 2 == 0
        inside = (places >= start) & (places < stop)
        assert inside[2:-2].all()
        parts.append(places[inside])
    assert torch.equal(torch.cat(parts), whole[whole < size])


def test_every_element_is_drawn_equally_often_and_draws_are_independent() -> None:
    size, count, draws = 1501, 1000, 4000
    sample = Sample(size, count, key_of(0, "w"), 0, size)
    drawn = np.zeros(size)
    for draw in range(draws):
        places = sample.places(draw).numpy()
        drawn[places[places < size]] += 1
    # Each element is drawn with probability 1/2, though the layer ends within a slice.
    assert abs(drawn - draws / 2).max() < 5 * (draws / 4) ** 0.5
    wide = Sample(1 << 30, 1000, key_of(0, "w"), 0, 1 << 30)
    offsets = np.stack([hashed(torch.arange(1000), wide.key, draw).numpy() for draw in range(50)]) / 2**31
    correlations = np.corrcoef(offsets)[np.triu_indices(50, 1)]
    assert abs(correlations).max() < 5 / 1000**0.5
    assert abs(np.corrcoef(offsets.T)[np.triu_indices(1000, 1)].mean()) < 0.001
    assert np.histogram(offsets, 20)[0] == pytest.approx(2500, rel=0.1)


def sums(new: Tensor, old: Tensor, spread: float) -> list[Tensor]:
    d, v = (new - old).abs(), old.abs()
    of_d, of_v = ((one[: len(one) // 2 * 2].view(-1, 2) @ one.new_tensor([1, -1])) for one in (d, v))
    products = ((of_d, of_d), (of_v, of_v), (of_d, of_v))
    return [d.sum(), v.sum(), *(spread * (one * other).sum() for one, other in products)]


def test_the_error_is_that_of_residuals_of_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    sample = Sample(1200, 300, 0, 0, 1200)
    found = standard_error(*sums(new, old, sample.spread)).item()
    d, v = (new - old).abs().numpy(), old.abs().numpy()
    residuals = d - d.sum() / v.sum() * v
    assert found == pytest.approx(np.sqrt(0.75 * ((residuals[::2] - residuals[1::2]) ** 2).sum()) / v.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "norm", "expected"), [(0.0, 0.0, 0.0), (0.0, 3.0, 0.0), (1.0, 0.0, np.nan), (np.nan, 1.0, np.nan)]
)
def test_the_error_where_the_rate_is_an_edge_case(change: float, norm: float, expected: float) -> None:
    tensor = torch.tensor
    found = standard_error(tensor(change), tensor(norm), tensor(change**2), tensor(norm**2), tensor(change * norm))
    np.testing.assert_equal(found.item(), expected)


def test_the_error_is_0_where_all_elements_change_by_the_same_factor() -> None:
    old = torch.rand(1000, dtype=torch.float64)
    assert standard_error(*sums(0.99 * old, old, 0.9)).item() < 1e-9


@pytest.mark.parametrize(
    "size", [(300, 400), (70, 117), (33, 141)]
)  # 30, 2 and 1.1 elements for each that may be drawn
@pytest.mark.parametrize("moving_rows", [1.0, 0.1])
def test_errors_are_as_large_as_they_are_said_to_be(moving_rows: float, size: tuple[int, int]) -> None:
    """z = (R - exact) / SE over draws and layers: mean 0, standard deviation 1; where all rows move, and where few do,
    as those of an embedding."""
    generator = torch.Generator().manual_seed(0)
    scores = []
    for layer in range(10):
        old = torch.randn(size, generator=generator, dtype=torch.float64) * 0.02
        speed = 0.01 * (torch.rand(size[0], 1, generator=generator) < moving_rows) + 1e-5
        new = (old * (1 + speed * torch.randn(size, generator=generator))).ravel()
        old = old.ravel()
        exact = (new - old).abs().sum() / old.abs().sum()
        sample = Sample(old.numel(), 4096, key_of(0, f"layer{layer}"), 0, old.numel())
        for draw in range(200):
            places = sample.places(draw)
            places = places[places < old.numel()]
            found = sums(new[places], old[places], sample.spread)
            scores.append(((found[0] / found[1] - exact) / standard_error(*found)).item())
    scores = np.array(scores)
    assert abs(scores.mean()) < 0.1
    assert scores.std() == pytest.approx(1, abs=0.1)
    assert (abs(scores) < 2).mean() == pytest.approx(0.95, abs=0.02)
