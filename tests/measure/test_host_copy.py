"""From device to host: memory that is used again, streams that wait for one another, histograms of skipped steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from outsider import model, weights

from rwc_wandb import find_layers, watch
from rwc_wandb.measure.delivery import Delivery
from rwc_wandb.measure.device import host_copy
from rwc_wandb.measure.device.histograms import Histograms
from rwc_wandb.measure.monitor import Monitor


class Happened:
    """An event: what a GPU has and a CPU has not."""

    def record(self, *_: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class Stream:
    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


def test_host_memory_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copy, "_new_event", lambda device: Happened())
    allocated: list[int] = []
    empty = torch.empty

    def counted(*sizes: Any, **options: Any) -> torch.Tensor:
        allocated.extend(sizes if "pin_memory" in options else [])
        return empty(*sizes, **options)

    monkeypatch.setattr(host_copy.torch, "empty", counted)
    network = model()
    with watch(network, run=False, log_every=4, histogram_every=2) as monitor:
        for number in range(40):
            with torch.no_grad():
                weights(network)[0].mul_(1.5)
            monitor.measure()
            if number == 10:
                monitor.flush()
    np.testing.assert_allclose(monitor.history.rwc, [[0.5, 0]] * 40, rtol=1e-6)
    # A row, the counts and the ranges of histograms.
    assert sorted(allocated) == sorted([4 * 2 * 5 * 8, 2 * 2 * 64 * 8, 2 * 2 * 2 * 4])


def test_another_stream_waits_for_the_one_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    of_steps, other = Stream(), Stream()
    current = of_steps
    monkeypatch.setattr(host_copy, "current_stream", lambda device: current)
    monitor = watch(model(), run=False)
    monitor.measure()
    monitor.measure()
    assert of_steps.waited_for == []
    current = other
    monitor.flush()
    assert other.waited_for == [of_steps]
    current = of_steps
    monitor.measure()
    assert of_steps.waited_for == [other]
    current = other
    monitor.close()
    assert other.waited_for == [of_steps] * 2


def test_long_rows_keep_a_short_buffer() -> None:
    network = model()
    monitor = watch(network, run=False, log_every=130)
    assert [len(group.buffer) for group in monitor._measuring.tracked.groups] == [50]
    for number in range(301):
        with torch.no_grad():
            weights(network)[number % 2].mul_(1.5)
        monitor.measure()
        assert len(monitor.history) == (number + 1) // 130 * 130
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, ([[0.5, 0], [0, 0.5]] * 151)[:301], rtol=1e-6)


class Kept(Delivery):
    def __init__(self, layers: Any) -> None:
        super().__init__(layers)
        self.histograms: list[Histograms] = []

    def log_histograms(self, histograms: Histograms) -> None:
        self.histograms.append(histograms)


def test_histograms_follow_skipped_steps() -> None:
    """A fused optimizer under GradScaler skips steps of which the host learns later."""
    network = model()
    layers = find_layers(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    kept = Kept(layers)
    monitor = Monitor(network, layers, [optimizer], log_every=4, histogram_every=1, delivery=kept)
    ranges = []
    for number in range(11):
        scaler.scale(network(torch.randn(4, 3, 8, 8)).sum()).backward()
        if number in (1, 2, 6):
            weights(network)[0].grad[0, 0, 0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if number not in (1, 2, 6):
            ranges.append([[weight.min().item(), weight.max().item()] for weight in weights(network)])
        if number == 2:  # The row is not full: whether step 2 was skipped is not known yet.
            assert kept.histograms == []
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(1, 9))
    assert [histograms.step for histograms in kept.histograms] == list(range(1, 9))
    for histograms, expected in zip(kept.histograms, ranges, strict=True):
        assert histograms.ranges[0].tolist() == expected


def test_histograms_do_not_wait_for_their_row() -> None:
    network = model()
    layers = find_layers(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    kept = Kept(layers)
    monitor = Monitor(network, layers, [optimizer], log_every=50, histogram_every=2, delivery=kept)
    for _ in range(4):
        optimizer.step()
    assert [histograms.step for histograms in kept.histograms] == [2, 4]
    monitor.close()
    assert len(kept.histograms) == 2
