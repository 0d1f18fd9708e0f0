"""Devices without float64, such as Apple's mps: the drop-in and the trainer on a stand-in that refuses it."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import FACTOR
from outsider import Recorder, model, weights
from torch import nn

from rwc_wandb import History, elementwise_relative_weight_change, relative_weight_change, watch
from rwc_wandb.study.train.totals import add_batch, new_totals, on_host

pytest.importorskip("torch.utils.backend_registration")
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)
HERE = os.environ.get("RWC_WANDB_NO_FLOAT64") == "1"
if HERE:
    from no_float64 import DEVICE, no_float64, waits

KEYS = ["train/loss", "train/accuracy", "test/loss", "test/accuracy"]
here = pytest.mark.skipif(not HERE, reason="in a process of its own")


@pytest.mark.skipif(HERE, reason="it is that process")
def test_in_a_process_of_its_own() -> None:
    """A device type is registered for good."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", __file__],
        env=os.environ | {"RWC_WANDB_NO_FLOAT64": "1"},
        capture_output=True,
        text=True,
        timeout=300 * max(1, FACTOR),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


@pytest.mark.skipif(HERE, reason="of torch's own lazy tensors")
def test_a_device_without_addresses_is_refused_in_one_sentence() -> None:
    script = (
        "import torch, torch._lazy.ts_backend, rwc_wandb; torch._lazy.ts_backend.init(); "
        "rwc_wandb.watch(torch.nn.Linear(3, 2).to('lazy'), run=False)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert re.search(r"UserError: weight is on the device lazy:0, where weights have no address .*\n$", result.stderr)


@here
def test_the_stand_in_refuses_float64() -> None:
    with no_float64():
        assert torch.ones(2, device=DEVICE).sum().item() == 2
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2, dtype=torch.float64, device=DEVICE)
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2, dtype=torch.float64).to(DEVICE)
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2, device=DEVICE).double()


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("every", "log_every"), [(1, 5), (3, 1), (1, 1000)])
def test_the_series_equals_the_oracle_and_no_step_waits(dtype: torch.dtype, every: int, log_every: int) -> None:
    with no_float64():
        network = nn.Sequential(model(), nn.Linear(5, 4096), nn.Linear(4096, 5), nn.Linear(4097, 1)).to(DEVICE, dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        monitor = watch(network, optimizer, run=False, every=every, log_every=log_every, histogram_every=4)
        recorder = Recorder([layer.parameter for layer in monitor.layers])
        for number in range(60):
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            before = len(waits)
            optimizer.step()
            assert len(waits) == before
            recorder.note()
            if number == 31:
                monitor.flush()
        monitor.close()
        recorder.weights = [[tensor.cpu() for tensor in copies] for copies in recorder.weights]
    assert monitor.history.steps.tolist() == list(range(every, 61, every))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(every=every), rtol=1e-6)
    elementwise = recorder.series(elementwise_relative_weight_change, every)
    np.testing.assert_allclose(monitor.history.rwc_elementwise, elementwise, rtol=1e-6)


@here
def test_sums_stay_exact_over_many_elements() -> None:
    """0.1 is rounded in float32, so are its partial sums: always in the same direction."""
    with no_float64():
        network = nn.Linear(5_000_000, 1, bias=False).to(DEVICE)
        with torch.no_grad():
            network.weight.fill_(0.1)
        with watch(network, run=False) as monitor, torch.no_grad():
            network.weight.fill_(0.7)
            monitor.measure()
        expected = relative_weight_change(torch.full((8,), 0.7), torch.full((8,), 0.1)).item()
    np.testing.assert_allclose(monitor.history.rwc, [[expected]], rtol=1e-6)


@here
def test_state_goes_to_the_host_and_back() -> None:
    with no_float64():
        network = model().to(DEVICE)
        monitor = watch(network, run=False)
        with torch.no_grad():
            weights(network)[0].mul_(2)
        state = monitor.state_dict()
        monitor.close()
        resumed = watch(network, run=False)
        resumed.load_state_dict(state)
        with torch.no_grad():
            weights(network)[1].mul_(3)
        resumed.measure()
        resumed.close()
    np.testing.assert_allclose(resumed.history.rwc, [[1, 2]], rtol=1e-6)


@here
def test_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import AcceleratorState, PartialState

    from rwc_wandb.cli import main

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--limit-train", "96", "--limit-test", "40", "--batch-size", "32", "--model", "timm:resnet10t",
             "--rwc-every", "1", "--epochs", "2", "--histogram-every", "2"]  # fmt: skip
    assert main([*words, "--name", "cpu"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(PartialState, "default_device", property(lambda self: DEVICE))
    with no_float64():
        assert main([*words, "--name", "nodouble"]) == 0
    assert PartialState().device == DEVICE
    one, other = (History.load(tmp_path / "runs" / name / "rwc.safetensors") for name in ("cpu", "nodouble"))
    assert other.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(other.rwc, one.rwc, rtol=1e-6)
    numbers = []
    for name in ("cpu", "nodouble"):
        with (tmp_path / "runs" / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        numbers.append([[float(row[key]) for key in KEYS] for row in rows])
    assert len(numbers[0]) == 2
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-6)


@here
def test_totals_over_an_epoch_stay_exact() -> None:
    """Two thousand losses of which float32 would round the sum, always in the same direction."""
    loss, labels = torch.tensor(0.1), torch.zeros(128, dtype=torch.int64)
    logits = torch.nn.functional.one_hot(torch.arange(128) % 2, 2).float()
    with no_float64():
        totals = new_totals(DEVICE, torch.tensor([2.0**25 + 0.125, 2.0**25 + 1, 2.0**26 + 1], dtype=torch.float64))
        arguments = [tensor.to(DEVICE) for tensor in (loss, logits, labels)]
        before = len(waits)
        for _ in range(2000):
            add_batch(totals, *arguments)
        assert len(waits) == before
        found = on_host(totals)
    expected = [2.0**25 + 0.125 + 2000 * 128 * loss.double().item(), 2.0**25 + 1 + 2000 * 64, 2.0**26 + 1 + 2000 * 128]
    assert found.tolist()[1:] == expected[1:]
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-9)
