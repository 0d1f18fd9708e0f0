"""A monitor in a checkpoint: the resumed series is that of a run that never stopped."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from outsider import Recorder, model, step, weights
from torch import nn

from rwc_wandb import Monitor, UserError, find_layers, watch
from rwc_wandb.measure.delivery import Delivery, Window


class Rows(Delivery):
    """Keeps which steps each row covers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(find_layers(network))
        self.steps: list[list[int]] = []

    def log_row(self, window: Window) -> None:
        self.steps.append(window.steps.tolist())


def saved_and_loaded(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def watched(network: nn.Module, optimizer: torch.optim.Optimizer, every: int, rows: Rows) -> Monitor:
    return Monitor(network, find_layers(network), [optimizer], every=every, log_every=4, delivery=rows)


def trained(optimizer: torch.optim.Optimizer, network: nn.Module, recorder: Recorder, steps: range) -> None:
    for index in steps:
        torch.manual_seed(index)
        step(optimizer, network)
        recorder.note()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("order", ["model first", "monitor first"])
def test_a_resumed_series_continues(every: int, order: str) -> None:
    network = model()
    rows = Rows(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watched(network, optimizer, every, rows)
    recorder = Recorder(weights(network))
    trained(optimizer, network, recorder, range(17))
    state = saved_and_loaded({"model": network.state_dict(), "monitor": monitor.state_dict()})
    # These steps are lost when the process ends.
    trained(optimizer, network, Recorder([]), range(90, 95))

    resumed = model()
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1)
    rows_after = Rows(resumed)
    monitor = watched(resumed, optimizer, every, rows_after)
    parts = [(resumed, "model"), (monitor, "monitor")]
    for part, key in parts if order == "model first" else reversed(parts):
        part.load_state_dict(state[key])
    assert monitor.step == 17
    recorder.parameters = weights(resumed)
    trained(optimizer, resumed, recorder, range(17, 30))
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(every, 31, every))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(every=every), rtol=1e-6)
    known = [steps for steps in rows.steps if steps[-1] <= 17]
    measured = monitor.history.steps.tolist()
    assert known + rows_after.steps == [measured[i : i + 4] for i in range(0, len(measured), 4)]


def test_steps_that_are_not_yet_known_to_be_skipped() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = watch(network, optimizer, run=False, every=4)

    def one(attempt: int) -> None:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, torch.inf if attempt == 1 else 1.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()

    for attempt in range(2):
        one(attempt)
    state = saved_and_loaded(monitor.state_dict())
    monitor.close()
    monitor = watch(network, optimizer, run=False, every=4)
    monitor.load_state_dict(state)
    for attempt in range(2, 5):
        one(attempt)
    monitor.close()
    assert monitor.history.steps.tolist() == [3]
    assert monitor.step == 4


def test_a_later_load_is_a_jump_again() -> None:
    network = model()
    monitor = watch(network, run=False)
    weights_before = {key: value.clone() for key, value in network.state_dict().items()}
    monitor.load_state_dict(monitor.state_dict())
    network.load_state_dict(weights_before)
    monitor.measure()
    network.load_state_dict({key: value + 1 for key, value in weights_before.items()})
    monitor.measure()
    monitor.close()
    assert (monitor.history.rwc[0] == 0).all()
    assert np.isnan(monitor.history.rwc[1]).all()


def test_what_was_measured_before_a_load_is_dropped() -> None:
    network = model()
    monitor = watch(network, run=False, log_every=3)
    state = monitor.state_dict()
    monitor.measure()
    monitor.load_state_dict(state)
    monitor.measure()
    monitor.close()
    assert monitor.history.steps.tolist() == [1]


def test_an_ended_monitor_saves_its_history() -> None:
    network = model()
    with watch(network, run=False) as monitor:
        monitor.measure()
    state = saved_and_loaded(monitor.state_dict())
    other = watch(network, run=False)
    other.load_state_dict(state)
    other.measure()
    other.close()
    assert other.history.steps.tolist() == [1, 2]


@pytest.mark.parametrize("sample", [None, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_state_of_a_closed_monitor_continues(dtype: torch.dtype, sample: int | None) -> None:
    """A checkpoint that is saved after the training: its weights are those that were measured last."""
    series = []
    for stops in (False, True):
        network = model().to(dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        monitor = watch(network, optimizer, run=False, log_every=4, sample=sample)
        for index in range(9):
            if stops and index == 4:
                monitor.close()
                state = saved_and_loaded({"model": network.state_dict(), "monitor": monitor.state_dict()})
                assert state["monitor"]["snapshots"] == {}
                # Where all is measured the memory's order may be another.
                memory = torch.channels_last if sample is None else torch.contiguous_format
                network = model().to(dtype, memory_format=memory)
                optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
                monitor = watch(network, optimizer, run=False, log_every=4, sample=sample)
                network.load_state_dict(state["model"])
                monitor.load_state_dict(state["monitor"])
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, 0.01 * (index + 1))
            optimizer.step()
        monitor.close()
        series.append(monitor.history)
    assert series[0].steps.tolist() == series[1].steps.tolist() == list(range(1, 10))
    assert np.isfinite(series[0].rwc).all()
    np.testing.assert_allclose(series[1].rwc, series[0].rwc, rtol=1e-6)


def test_the_state_of_a_monitor_that_closed_between_measurements_compares_with_nothing() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False, every=3)
    for _ in range(4):
        step(optimizer, network)
    monitor.close()
    resumed = watch(network, optimizer, run=False, every=3)
    resumed.load_state_dict(monitor.state_dict())
    recorder = Recorder(weights(network))
    for _ in range(5):
        step(optimizer, network)
        recorder.note()
    resumed.close()
    assert resumed.history.steps.tolist() == [3, 6, 9]
    assert np.isnan(resumed.history.rwc[1]).all()
    recorder.weights = recorder.weights[2::3]
    np.testing.assert_allclose(resumed.history.rwc[2:], recorder.series(), rtol=1e-6)


def test_states_that_do_not_fit() -> None:
    network = model()
    state = watch(network, run=False).state_dict()
    with pytest.raises(UserError, match=r"difference: .*1"):
        watch(network, run=False, layers="all").load_state_dict(state)
    network[3] = nn.Linear(4, 5)
    with pytest.raises(UserError, match=r"3 has the shape \(5, 252\) in the state and \(5, 4\)"):
        watch(network, run=False).load_state_dict(state)
    with pytest.raises(UserError, match="rank 0"):
        watch(network, run=False).load_state_dict({})


def test_a_state_without_snapshots_compares_with_nothing() -> None:
    network = model()
    with watch(network, run=False) as monitor:
        monitor.measure()
        monitor.close()
        state = monitor.state_dict()
    with torch.no_grad():
        weights(network)[0].mul_(2)
    with watch(network, run=False) as resumed:
        with torch.no_grad():
            weights(network)[0].mul_(2)
        resumed.load_state_dict(state)
        resumed.measure()
        resumed.measure()
    assert resumed.history.steps.tolist() == [1, 2, 3]
    assert np.isnan(resumed.history.rwc[1]).all()
    assert (resumed.history.rwc[2] == 0).all()
