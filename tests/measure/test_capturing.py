"""CUDA graphs and compiled steps. There is no GPU here: that a stream is being captured is made up."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from outsider import Recorder, model, step, weights

from rwc_wandb import watch


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    state = SimpleNamespace(on=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.on)
    return state


def test_captured_steps_are_none_and_replays_are_measured_by_hand(
    capture: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False, log_every=2)
    step(optimizer, network)
    recorder = Recorder(weights(network))
    kept = [parameter.detach().clone() for parameter in network.parameters()]

    def refused(*_: object) -> None:
        raise AssertionError("nothing may be launched or asked while a stream is captured")

    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        capture.on = True
        for group in monitor._measuring.tracked.groups:
            patched.setattr(group, "measure", refused)
            patched.setattr(group, "read", refused)
        patched.setattr(monitor._measuring._readback, "advance", refused)
        for _ in range(3):
            step(optimizer, network)
        monitor.measure()
        monitor.flush()
        patched.setattr(type(monitor._measuring.tracked), "whole_snapshots", refused)
        assert monitor.state_dict() == {}
        monitor.close()
    (message,) = [str(one.message) for one in said if one.category is not ResourceWarning]
    assert "CUDA graph" in message
    assert "monitor.measure()" in message
    assert not monitor.closed
    assert monitor.step == 1
    capture.on = False
    with torch.no_grad():  # A capture runs nothing: its weights are those from before.
        for parameter, before in zip(network.parameters(), kept, strict=True):
            parameter.copy_(before)
        for _ in range(2):  # A replay changes weights without a hook.
            for weight in weights(network):
                weight.mul_(1.5)
            recorder.note()
            monitor.measure()
    monitor.close()
    assert monitor.history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(monitor.history.rwc[1:], recorder.series(), rtol=1e-6)


def test_several_optimizers_under_capture(capture: SimpleNamespace) -> None:
    network = model()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (network[0], network[3])]
    monitor = watch(network, optimizers, run=False)
    step(optimizers[0], network)
    capture.on = True
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        step(optimizers[0], network)
    capture.on = False
    assert monitor.step == 0
    step(optimizers[1], network)
    assert monitor.step == 1
    monitor.close()


COMPILED = """
import torch
from outsider import Recorder, assert_equals, model, weights
from rwc_wandb import watch

network = model()
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
compiled = torch.compile(network, mode="reduce-overhead")
monitor = watch(compiled, optimizer, run=False, log_every=3)
recorder = Recorder(weights(network))

@torch.compile(mode="reduce-overhead")
def update():
    optimizer.step()

for _ in range(8):
    optimizer.zero_grad()
    compiled(torch.randn(4, 3, 8, 8)).square().mean().backward()
    update()
    recorder.note()
monitor.close()
assert_equals(monitor, recorder)
"""


def test_a_model_and_a_step_compiled_with_reduced_overhead() -> None:
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=300, cwd=__file__.rpartition("/")[0])


ONE_GRAPH = """
import warnings
import numpy as np, torch
from outsider import Recorder, model, weights
from rwc_wandb import watch

def trained(watched):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network = model()
    matrices = [weight for weight in network.parameters() if weight.ndim == 2]
    optimizer = torch.optim.KIND(matrices, lr=0.01)
    monitor = watch(network, optimizer, run=False) if watched else None
    recorder = Recorder(matrices)
    update = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        update()
        recorder.note()
        if watched:
            monitor.measure()
    if watched:
        monitor.close()
        np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)
    return [weight.detach() for weight in matrices]

try:
    without = trained(False)
except Exception:
    raise SystemExit(77)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("default")
    watched = trained(True)
assert all(map(torch.equal, without, watched))
(told,) = [str(one.message) for one in said if "rwc_wandb" in str(one.message)]
assert "fullgraph=True" in told and "monitor.measure()" in told
"""


@pytest.mark.parametrize("kind", ["Adafactor", "Muon"])
def test_a_step_compiled_as_one_graph_works_as_without_us_and_is_measured_by_hand(kind: str) -> None:
    code = ONE_GRAPH.replace("KIND", kind)
    done = subprocess.run([sys.executable, "-c", code], timeout=300, cwd=__file__.rpartition("/")[0])
    if done.returncode == 77:
        pytest.skip(f"this torch has no {kind} whose step compiles as one graph, without us either")
    assert done.returncode == 0
