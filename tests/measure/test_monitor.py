"""The hook against the oracle: values, cadence, jumps and failures."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from outsider import Recorder, assert_equals, model, run, step, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rwc_wandb import MonitoringStopped, elementwise_relative_weight_change, watch
from rwc_wandb.measure.device.readback import ReadBack
from rwc_wandb.measure.tracked import TrackedWeights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("every", [1, 3])
def test_series_equals_the_oracle(dtype: torch.dtype, every: int) -> None:
    network = model(dtype)
    monitor, recorder = run(
        network, torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), 12, every=every, log_every=5
    )
    assert monitor.history.steps.tolist() == list(range(every, 13, every))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(every=every), rtol=1e-6)
    elementwise = recorder.series(elementwise_relative_weight_change, every)
    np.testing.assert_allclose(monitor.history.rwc_elementwise, elementwise, rtol=1e-6)


def test_channels_last_and_all_parameters() -> None:
    network = model().to(memory_format=torch.channels_last)
    monitor, recorder = run(network, torch.optim.AdamW(network.parameters(), lr=0.01), 5, layers="all")
    assert len(monitor.layers) == 6
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)


def test_measure_without_an_optimizer() -> None:
    network = model()
    with watch(network, run=False) as monitor:
        with torch.no_grad():
            weights(network)[0].mul_(1.5)
        monitor.measure()
        with torch.no_grad():
            weights(network)[1].mul_(0.25)
        monitor.measure(step=40)
    assert monitor.history.steps.tolist() == [1, 40]
    np.testing.assert_allclose(monitor.history.rwc, [[0.5, 0], [0, 0.75]], rtol=1e-6)


def test_a_frozen_layer_is_zero_and_a_step_without_gradients_too() -> None:
    network = model()
    network[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    monitor, _ = run(network, optimizer, 3, layers=lambda name, parameter: parameter.dim() > 1)
    assert (monitor.history.rwc[:, 0] == 0).all()
    assert (monitor.history.rwc[:, 1] > 0).all()


def test_zeros_infinities_and_nan() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.zero_()
        network[1].weight.zero_()
    with watch(network, run=False) as monitor:
        with torch.no_grad():
            network[1].weight.fill_(1)
            network[2].weight[0, 0] = torch.nan
        monitor.measure()
    assert monitor.history.rwc[0, :2].tolist() == [0, np.inf]
    assert np.isnan(monitor.history.rwc[0, 2])
    assert np.isnan(monitor.history.rwc_elementwise[0, 2])


def test_an_interval_ends_with_close() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor, _ = run(network, optimizer, 2)
    step(optimizer, network)
    monitor.measure()
    monitor.close()
    assert len(monitor.history) == 2
    assert not optimizer._optimizer_step_post_hooks


def replaced(network: nn.Module) -> None:
    network[3].weight = nn.Parameter(torch.randn(5, 7 * 36))


def replaced_module(network: nn.Module) -> None:
    network[3] = nn.Linear(7 * 36, 5)


def resized(network: nn.Module) -> None:
    network[3].weight.data = torch.randn(6, 7 * 36)


@pytest.mark.parametrize("change", [replaced, replaced_module, resized])
def test_a_weight_that_is_replaced_is_nan_once_and_followed(change: Callable[[nn.Module], None]) -> None:
    network = model()
    monitor = watch(network, run=False, log_every=4)
    with torch.no_grad():
        network[0].weight.mul_(2)
    monitor.measure()
    change(network)
    with torch.no_grad():
        network[0].weight.mul_(2)
    with pytest.warns(UserWarning, match=r"1 layer \(3\)"):
        monitor.measure()
    with torch.no_grad():
        network[0].weight.mul_(2)
        network[3].weight.mul_(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure()
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, [[1, 0], [1, np.nan], [1, 2]], rtol=1e-6)


def test_a_layer_that_left_the_model_is_nan_from_then_on() -> None:
    network = model()
    monitor = watch(network, run=False)
    network[3] = nn.Identity()
    with pytest.warns(UserWarning, match="3"):
        monitor.measure()
    monitor.measure()
    monitor.close()
    assert np.isnan(monitor.history.rwc[:, 1]).all()
    assert (monitor.history.rwc[:, 0] == 0).all()


def test_a_wrapped_layer_keeps_its_series() -> None:
    """As LoRA does: the old module moves into a new one; the tensor is the same."""
    network = model()
    monitor = watch(network, run=False)
    network[3] = nn.Sequential(network[3], nn.Linear(5, 5))
    with torch.no_grad():
        network[3][0].weight.mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure()
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, [[0, 1]], rtol=1e-6)


def test_loading_weights_makes_one_nan() -> None:
    network = model()
    monitor = watch(network, run=False)
    state = {name: value + 1 for name, value in network.state_dict().items()}
    monitor.measure()
    network.load_state_dict(state)
    monitor.measure()
    monitor.measure()
    monitor.close()
    assert np.isnan(monitor.history.rwc[1]).all()
    assert (monitor.history.rwc[[0, 2]] == 0).all()


def test_a_failure_ends_monitoring_but_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False, log_every=100)
    step(optimizer, network)

    def broken(_: TrackedWeights) -> bool:
        raise RuntimeError("planted")

    monkeypatch.setattr(TrackedWeights, "changed", broken)
    with pytest.warns(MonitoringStopped, match=r"step 2: RuntimeError: planted.*1 measurements"):
        step(optimizer, network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer, network)
        monitor.close()
    assert monitor.history.steps.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 1.5}, "every=1.5"),
        ({"log_every": -1}, "log_every=-1"),
        ({"histogram_every": 0}, "histogram_every=0.*None"),
        ({"rows": "mine"}, "rows='mine'.*attached"),
        ({"prefix": "a.b"}, "prefix='a.b'"),
        ({"prefix": ""}, "prefix=''"),
        ({"layers": "absent"}, "absent"),
    ],
)
def test_bad_arguments(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        watch(model(), run=False, **options)  # type: ignore[arg-type]


class HostReads(TorchDispatchMode):
    """Counts what would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [False, True])
def test_no_step_reads_from_the_device(fused: bool) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=fused)
    monitor = watch(network, optimizer, run=False, log_every=5, histogram_every=3)
    with HostReads() as reads:
        torch.ones(()).item()
        assert reads.count == 1
        for _ in range(20):
            optimizer.found_inf = torch.zeros(()) if fused else None  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            for hook in list(optimizer._optimizer_step_post_hooks.values()):
                hook(optimizer, (), {})
        assert reads.count == 1
    monitor.close()
    assert len(monitor.history) == 20


def test_bad_optimizer_and_model() -> None:
    with pytest.raises(TypeError, match="Optimizer, not str"):
        watch(model(), "sgd", run=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Module"):
        watch(None, run=False)  # type: ignore[arg-type]


def test_a_step_is_a_plain_number() -> None:
    """NumPy's have no place in a checkpoint that `torch.load(weights_only=True)` reads, nor in JSON."""
    network = model()
    monitor = watch(network, run=False)
    for epoch in np.arange(1, 4):
        monitor.measure(epoch)
    assert type(monitor.state_dict()["counters"]["step"]) is int
    monitor.step = np.int64(7)
    assert type(monitor.step) is int
    with pytest.raises(TypeError):
        monitor.measure(1.5)  # type: ignore[arg-type]
    monitor.close()
    assert monitor.history.steps.tolist() == [1, 2, 3]


def test_weights_that_are_replaced_within_inference_mode() -> None:
    """In bfloat16, which plain torch measures: it refuses to write to what was made within."""
    network = model(torch.bfloat16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    step(optimizer, network)
    network[3].weight = nn.Parameter(network[3].weight.detach().clone())
    with torch.inference_mode():
        monitor.measure()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        step(optimizer, network)
        monitor.measure()
    monitor.close()
    assert monitor.history.steps.tolist() == [1, 2, 3, 4, 5]
    assert np.isfinite(monitor.history.rwc[2:]).all()
    assert (monitor.history.rwc[2:] > 0).all()


def test_an_interrupt_before_a_row_is_sent_costs_no_later_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook, which then goes on with the same monitor."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False, log_every=3)
    recorder = Recorder(weights(network))
    take = ReadBack.take

    def take_and_interrupt(*words: Any) -> None:
        take(*words)
        if monitor.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ReadBack, "take", take_and_interrupt)
    for number in range(1, 9):
        with pytest.raises(KeyboardInterrupt) if number == 3 else contextlib.nullcontext():
            step(optimizer, network)
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)
