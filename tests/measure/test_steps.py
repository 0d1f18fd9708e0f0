"""When a step is complete: several optimizers in any order, and optimizers that work inside others."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from outsider import Recorder, assert_equals, model, weights
from torch import Tensor, nn

from rwc_wandb import MonitoringStopped, watch


def gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_optimizers_that_step_in_hooks_after_their_own_gradients(order: list[int]) -> None:
    """Backward reaches the last weights first, whatever the order in which the optimizers are given."""
    network = model()
    own = [torch.optim.SGD([weight], lr=0.1) for weight in weights(network)]

    def stepping(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
        def step(_: Tensor) -> None:
            optimizer.step()
            optimizer.zero_grad()

        return step

    for weight, optimizer in zip(weights(network), own, strict=True):
        weight.register_post_accumulate_grad_hook(stepping(optimizer))
    monitor = watch(network, [own[index] for index in order], run=False)
    recorder = Recorder(weights(network))
    for _ in range(4):
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)
    assert (monitor.history.rwc > 0).all()


@pytest.mark.parametrize("rare", [0, 1])
def test_an_optimizer_that_steps_every_fifth_time_only(rare: int) -> None:
    network = model()
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights(network)]
    monitor = watch(network, optimizers, run=False)
    recorder = Recorder(weights(network))
    for index in range(20):
        gradients(network)
        optimizers[1 - rare].step()
        if index % 5 == 4:
            optimizers[rare].step()
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)
    assert ((monitor.history.rwc[:, rare] > 0) == (np.arange(20) % 5 == 4)).all()


def test_a_state_saved_between_two_optimizers() -> None:
    """The second steps in the resumed training, or not any more: the step of the first counts either way."""
    network = model()
    first, second = (torch.optim.SGD([weight], lr=0.1) for weight in weights(network))
    monitor = watch(network, [first, second], run=False)
    gradients(network)
    first.step()
    state = monitor.state_dict()
    assert len(monitor.history) == 0
    monitor.close()
    assert monitor.history.steps.tolist() == [1]
    resumed = watch(network, [first, second], run=False)
    resumed.load_state_dict(state)
    second.step()
    assert resumed.step == 1
    resumed.close()
    assert (resumed.history.rwc[0] > 0).all()


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as github.com/davda54/sam has it: two methods, and no `step` in between."""

    def __init__(self, parameters: list[Tensor], base: type[torch.optim.Optimizer], **options: float) -> None:
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.clone()
                parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["old"])
        self.base_optimizer.step()


@pytest.mark.parametrize("every", [1, 2])
def test_sharpness_aware_minimisation(every: int) -> None:
    network = model()
    optimizer = SAM(list(network.parameters()), torch.optim.SGD, lr=0.1)
    monitor = watch(network, optimizer, run=False, every=every)
    recorder = Recorder(weights(network))
    for _ in range(6):
        gradients(network)
        optimizer.first_step()
        gradients(network)
        optimizer.second_step()
        recorder.note()
    monitor.close()
    assert monitor.history.steps.tolist() == list(range(every, 7, every))
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(every=every), rtol=1e-6)


class Shrinking(torch.optim.SGD):
    """Its step goes on after that of its superclass, and may fail in between."""

    fails = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        if self.fails:
            raise RuntimeError("in the middle of a step")
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.9)


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_that_calls_that_of_its_superclass(number: int) -> None:
    """Once an SGD has been made, torch calls the hooks of its `step` in that of a subclass too."""
    network = model()
    torch.optim.SGD(network.parameters())
    optimizers = [Shrinking(weights(network)[index::number], lr=0.1) for index in range(number)]
    monitor = watch(network, optimizers, run=False)
    recorder = Recorder(weights(network))
    for index in range(4):
        gradients(network)
        for optimizer in optimizers:
            optimizer.step()
        recorder.note()
        if index == 1:
            optimizers[0].fails = True
            with pytest.raises(RuntimeError, match="in the middle"):
                optimizers[0].step()
            optimizers[0].fails = False
    monitor.close()
    assert_equals(monitor, recorder)


def hooks_of(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_closing_in_the_middle_of_a_step_ends_no_training(elsewhere: bool) -> None:
    """torch goes through its hooks: a hook of the user closes the monitor, here or in another thread."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    later: list[int] = []

    def close(*_: object) -> None:
        later.append(1)
        if later.count(1) == 2:
            if elsewhere:
                thread = threading.Thread(target=monitor.close)
                thread.start()
                thread.join()
            else:
                monitor.close()

    optimizer.register_step_post_hook(close)
    optimizer.register_step_post_hook(lambda *_: later.append(0))
    recorder = Recorder(weights(network))
    for number in range(4):
        gradients(network)
        optimizer.step()
        if number < 2:
            recorder.note()
    assert later == [1, 0] * 4
    assert monitor.closed
    assert_equals(monitor, recorder)


def test_one_of_two_monitors_that_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    failing, other = watch(network, optimizer, run=False), watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    for number in range(4):
        if number == 2:
            monkeypatch.setattr(failing._measuring.tracked, "changed", lambda: 1 / 0)
        gradients(network)
        with pytest.warns(MonitoringStopped) if number == 2 else contextlib.nullcontext():
            optimizer.step()
        recorder.note()
    other.close()
    assert failing.history.steps.tolist() == [1, 2]
    assert_equals(other, recorder)
    before = hooks_of(optimizer)
    with watch(network, optimizer, run=False):
        assert hooks_of(optimizer) == before + 1
    assert hooks_of(optimizer) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_trains_on_unmeasured() -> None:
    """Its weights are the parent's no more, nor has it the parent's threads."""
    code = """
import os, torch
from torch import nn
from rwc_wandb import watch
torch.set_num_threads(2)
model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
monitor = watch(model, optimizer, run=False)
def step():
    for layer in model:
        layer.weight.grad = layer.weight.detach() / 2
    optimizer.step()
step()
if not (child := os.fork()):
    # torch's own threads do not live on either.
    torch.set_num_threads(1)
    step()
    os._exit(monitor.step)
assert os.waitpid(child, 0)[1] >> 8 == 1
step()
monitor.close()
print(monitor.history.steps.tolist(), monitor.history.rwc.round(6).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2] [[0.25, 0.25], [0.25, 0.25]]\n", done.stderr
