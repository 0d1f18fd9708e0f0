"""When a step is complete: several optimizers in any order, and optimizers that work inside others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from outsider import Recorder, assert_equals, model, weights
from torch import Tensor, nn

from rwc_wandb import watch


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
