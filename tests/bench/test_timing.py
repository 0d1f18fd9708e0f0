"""Medians, ratios and turns, with clocks that say what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rwc_wandb.bench.timing import Floor, Spread, interleaved, spread


def called(call: Callable[[], Any]) -> float:
    """A clock for calls that return their own milliseconds."""
    return call()


def test_the_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([5, 1, 2, 4, 3]) == Spread(median=3, low=2, high=4, samples=5)


@pytest.mark.parametrize(
    ("durations", "floor_time"), [((4.0, 6.0, 9.0), 6.0), ((6.0, 4.0, 9.0), 6.0), ((4.0, 4.0, 5.0), 5.0)]
)
def test_the_floor_is_three_passes_over_the_weights(durations: tuple[float, ...], floor_time: float) -> None:
    weights = [torch.zeros(300, 7), torch.zeros(11, dtype=torch.float64)]
    floor = Floor(weights, lambda call: durations[[way for _, way in floor.ways].index(call)])
    assert floor.source.nbytes == floor.target.nbytes == 4 * 2100 + 8 * 11
    assert floor.milliseconds() == floor_time


def test_every_way_to_the_floor_passes_over_all_elements() -> None:
    floor = Floor([torch.zeros(301)], called)
    for _, way in floor.ways:
        floor.target.zero_()
        way()
        assert torch.equal(floor.target, torch.ones(301))


def test_a_ratio_is_that_to_the_floor_just_before() -> None:
    floors = iter([1.0, 2.0, 4.0])
    now = [0.0]

    def floor() -> float:
        now[0] = next(floors)
        return now[0]

    timing, timings = interleaved({"thrice": lambda: 3 * now[0]}, floor, lambda call: max(called(call), 1e-9), 3, list)
    assert timings["thrice"].ratio == Spread(3, 3, 3, 3)
    assert timings["thrice"].milliseconds.median == 6
    assert timing.milliseconds == spread([1, 2, 4])


def test_slow_methods_sit_rounds_out_and_orders_change() -> None:
    heard: list[str] = []

    def method(name: str, milliseconds: float) -> Callable[[], float]:
        def call() -> float:
            heard.append(name)
            return milliseconds

        return call

    calls = {"slow": method("slow", 2000), "quick": method("quick", 1)}
    _, timings = interleaved(calls, lambda: 1.0, called, 30, lambda: heard.append("|"))
    assert (timings["slow"].ratio.samples, timings["quick"].ratio.samples) == (3, 30)
    rounds = "".join(name[0] for name in heard).split("|")
    # The first is for warming up; every call is run twice and timed once.
    assert len(rounds) == 31
    assert rounds[1] == "ssqq"
    assert rounds[2] == "qq"
    assert sorted(rounds[11]) == list("qqss")
