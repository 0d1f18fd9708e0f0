"""The ways in which people train, in one process: the oracle's values, one measurement per real step, equal names."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sampled
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from outsider import Recorder, assert_equals, model, run, step, weights
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from rwc_wandb import Monitor, UserError, watch
from rwc_wandb.measure import tracked

NAMES = ["0", "3"]


def names(monitor: Monitor) -> list[str]:
    return [layer.name for layer in monitor.layers]


def loss_of(network: nn.Module) -> Tensor:
    return network(torch.randn(4, 3, 8, 8)).square().mean()


def trained(
    network: nn.Module, optimizer: Any, monitor: Monitor, forward: Callable[..., Tensor] = loss_of, steps: int = 4
) -> Recorder:
    recorder = Recorder([layer.parameter for layer in monitor.layers])
    for _ in range(steps):
        optimizer.zero_grad()
        forward(network).backward()
        optimizer.step()
        recorder.note()
    monitor.close()
    return recorder


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_modules(before: bool, in_place: bool) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def compiled() -> nn.Module:
        if in_place:
            network.compile(backend="eager")
            return network
        return torch.compile(network, backend="eager")  # type: ignore[return-value]

    if before:
        monitor = watch(network, optimizer, run=False)
        trainee = compiled()
    else:
        trainee = compiled()
        monitor = watch(trainee, optimizer, run=False)
    assert names(monitor) == NAMES
    assert_equals(monitor, trained(trainee, optimizer, monitor))


def test_a_compiled_optimizer_step() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        loss_of(network).backward()
        compiled()
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, gradient_accumulation_steps=3)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("before", [True, False])
def test_accelerate_with_gradient_accumulation(accelerator: Accelerator, before: bool) -> None:
    network = model()
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=0.01)
    if before:
        monitor = watch(network, optimizer, run=False)
    network, optimizer = accelerator.prepare(network, optimizer)
    if not before:
        monitor = watch(network, optimizer, run=False)
    assert names(monitor) == NAMES
    recorder = Recorder([layer.parameter for layer in monitor.layers])
    for batch in range(9):
        with accelerator.accumulate(network):
            accelerator.backward(loss_of(network))
            optimizer.step()
            optimizer.zero_grad()
        if batch % 3 == 2:
            recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_grad_scaler_skips_do_not_count(fused: bool, every: int) -> None:
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = watch(network, optimizer, run=False, every=every, log_every=2)
    recorder = Recorder(weights(network))
    for attempt in range(10):
        optimizer.zero_grad()
        scaler.scale(loss_of(network) * (torch.inf if attempt in (0, 4, 5) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if attempt not in (0, 4, 5):
            recorder.note()
    monitor.close()
    assert len(recorder.weights) == 8
    assert monitor.step == 7
    if every == 1:
        assert_equals(monitor, recorder)
        return
    # A fused optimizer tells only later that it skipped a step: `calls` counts to 3, the history has the real steps.
    steps = [2, 3, 6] if fused else [3, 6]
    assert monitor.history.steps.tolist() == steps
    recorder.weights = [recorder.weights[index] for index in [0, *steps]]
    np.testing.assert_allclose(monitor.history.rwc, recorder.series(), rtol=1e-6)


def test_two_fused_optimizers_of_which_one_skips() -> None:
    network = model()
    first, last = (torch.optim.SGD([weight], lr=0.1, fused=True) for weight in weights(network))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monitor = watch(network, [first, last], run=False)
    recorder = Recorder(weights(network))
    for attempt in range(4):
        for weight in weights(network):
            weight.grad = torch.randn_like(weight)
        if attempt in (1, 2):
            weights(network)[1].grad.fill_(torch.inf)  # type: ignore[union-attr]
        if attempt == 2:
            weights(network)[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.scale(torch.ones(()))
        for optimizer in (first, last):
            scaler.step(optimizer)
        scaler.update()
        if attempt != 2:
            recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)
    assert monitor.history.rwc[1, 1] == 0
    assert monitor.history.rwc[1, 0] > 0


def test_step_with_a_closure_and_lbfgs() -> None:
    network = model()
    lbfgs = torch.optim.LBFGS(network.parameters(), max_iter=5)

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = loss_of(network)
        loss.backward()
        return loss

    monitor = watch(network, lbfgs, run=False)
    recorder = Recorder(weights(network))
    for _ in range(3):
        lbfgs.step(closure)
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


def test_two_optimizers_for_one_model() -> None:
    network = model()
    first, second = (torch.optim.SGD([parameter], lr=0.1) for parameter in weights(network))
    monitor = watch(network, [first, second], run=False)
    recorder = Recorder(weights(network))
    for _ in range(3):
        loss_of(network).backward()
        first.step()
        second.step()
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


@pytest.mark.parametrize("kind", [list, dict, nn.ModuleDict])
def test_one_optimizer_for_several_models(kind: Callable[..., Any]) -> None:
    generator, critic = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    both = [generator, critic] if kind is list else kind({"generator": generator, "critic": critic})
    parameters = [*generator.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    monitor = watch(both, optimizer, run=False)
    assert names(monitor) == (["0", "1.0", "1.1"] if kind is list else ["generator", "critic.0", "critic.1"])
    recorder = trained(critic, optimizer, monitor, lambda _: critic(generator(torch.randn(5, 3))).square().mean())
    assert_equals(monitor, recorder)
    assert (monitor.history.rwc > 0).all()


def test_models_that_are_none() -> None:
    for nothing in ([], {}, [3]):
        with pytest.raises(TypeError, match="list or dict"):
            watch(nothing, run=False)  # type: ignore[arg-type]


def test_averaged_copies_leave_the_series_alone() -> None:
    """A copy has the model's hooks: what it loads is not what the model loads."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    average, copied = AveragedModel(network), copy.deepcopy(network)
    recorder = Recorder(weights(network))
    for _ in range(3):
        step(optimizer, network)
        average.update_parameters(network)
        copied.load_state_dict(network.state_dict())
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)
    assert names(watch(average, run=False)) == NAMES


def test_a_watched_model_and_its_optimizer_can_be_pickled() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with watch(network, optimizer, run=False):
        assert b"rwc_wandb" not in pickle.dumps(network)
        pickle.dumps(optimizer)
        buffer = io.BytesIO()
        torch.save(network, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    loaded.load_state_dict(network.state_dict())
    assert torch.equal(loaded[3].weight, network[3].weight)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = checkpoint(layer, images, use_reentrant=False)
        return images


def test_gradient_checkpointing() -> None:
    torch.manual_seed(0)
    network = Checkpointed()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = trained(network, optimizer, monitor, lambda network: network(torch.randn(3, 6)).square().sum())
    assert_equals(monitor, recorder)


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.base_layer(images) + self.up(self.down(images))


@pytest.mark.parametrize("before", [True, False])
def test_low_rank_adapters(before: bool) -> None:
    """Added after `watch` the frozen layer keeps its name and series, and adapters join it."""
    network = model()
    if not before:
        network[3] = LowRank(network[3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    if before:
        network[3] = LowRank(network[3])
        optimizer.add_param_group({"params": [*network[3].up.parameters(), *network[3].down.parameters()]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder = trained(network, optimizer, monitor)
    assert names(monitor) == ["0", "3" if before else "3.base_layer", "3.down", "3.up"]
    if before:
        assert np.isnan(monitor.history.rwc[0, 2:]).all()
        assert (monitor.history.rwc[2:, 2:] > 0).all()
        np.testing.assert_allclose(monitor.history.rwc[:, :2], recorder.series(), rtol=1e-6)
    else:
        assert_equals(monitor, recorder)
    assert (monitor.history.rwc[:, 1] == 0).all()


def test_tied_and_frozen_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    network[2].weight = network[0].weight
    network[1].requires_grad_(False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = trained(network, optimizer, monitor, lambda network: network(torch.arange(7)).square().sum())
    assert names(monitor) == ["0", "1"]
    assert_equals(monitor, recorder)
    assert (monitor.history.rwc[:, 1] == 0).all()


@pytest.mark.parametrize("change", ["clone", "double", "channels_last"])
def test_weights_that_only_move_keep_their_series(change: str) -> None:
    """As when Accelerate moves a model to its device after `watch`, or an optimizer assigns to `.data`."""
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            if change == "clone":
                for parameter in network.parameters():
                    parameter.data = parameter.data.clone()
            else:
                network.to(torch.float64) if change == "double" else network.to(memory_format=torch.channels_last)
            step(optimizer, network)
            recorder.note()
        monitor.close()
    recorder.weights = [[weight.double() for weight in weights] for weights in recorder.weights]
    assert_equals(monitor, recorder)


class Assigning(torch.optim.Optimizer):
    """A descent that assigns to `.data`, and what it assigns is in memory as `placed` returns it."""

    def __init__(self, parameters: Any, placed: Callable[[Tensor], Tensor]) -> None:
        super().__init__(parameters, {})
        self.placed = placed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data = self.placed(parameter.data - 0.1 * parameter.grad)


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor] * 3, -1)[..., 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placed", [torch.clone, with_gaps])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sample", [None, 100])
def test_weights_that_are_assigned_at_each_step(
    dtype: torch.dtype,
    placed: Callable[[Tensor], Tensor],
    layout: torch.memory_format,
    sample: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are measured where they are then, and nothing is built anew for that."""
    network = model(dtype).to(memory_format=layout)
    for parameter in network.parameters():
        parameter.data = placed(parameter.data)
    optimizer = Assigning(network.parameters(), placed)
    monitor = watch(network, optimizer, run=False, sample=sample, log_every=3, histogram_every=2)
    groups = monitor._measuring.tracked.groups
    recorder = Recorder(weights(network))
    with monkeypatch.context() as nothing_new, warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing_new.setattr(tracked, "find_layers", None)
        for _ in range(7):
            step(optimizer, network)
            recorder.note()
        assert monitor._measuring.tracked.groups is groups
    wanted = recorder.series() if sample is None else sampled.series(recorder.weights, NAMES, sample, 3)
    # What becomes something else is followed as ever.
    network.double()
    monitor.measure()
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc[:7], wanted, rtol=1e-6)
    assert (monitor.history.rwc[7] == 0).all()


def test_assigned_weights_let_their_old_memory_go() -> None:
    network = nn.Linear(8, 8)
    with watch(network, run=False) as monitor:
        for _ in range(3):
            memory = np.ones((8, 8), np.float32)
            network.weight.data = torch.from_numpy(memory)
            monitor.measure()
            held = weakref.ref(memory)
            del memory
            assert held() is not None
            network.weight.data = network.weight.data * 2
            monitor.measure()
            assert held() is None
    np.testing.assert_allclose(monitor.history.rwc[1:, 0], [1, 0.5, 1, 0.5, 1])


def test_weights_with_gaps_in_memory() -> None:
    network = model()
    network[3].weight = nn.Parameter(torch.randn(5, 3 * 7 * 36)[:, ::3])
    assert not network[3].weight.is_contiguous()
    monitor, recorder = run(network, torch.optim.SGD(network.parameters(), lr=0.1), 3)
    assert_equals(monitor, recorder)


class Private(torch.optim.Optimizer):
    """In the manner of Opacus' DPOptimizer: an optimizer by its class, with another inside that steps now and then."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer
        self.calls = 0

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % 2 == 0:
            self.original_optimizer.step()


def test_an_optimizer_that_keeps_another_by_any_name() -> None:
    network = nn.Module()
    network._module = model()
    optimizer = Private(torch.optim.SGD(network.parameters(), lr=0.1))
    monitor = watch(network, optimizer, run=False)
    assert names(monitor) == NAMES
    recorder = Recorder(weights(network))
    for index in range(6):
        step(optimizer, network)
        if index % 2:
            recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused_and_its_original_measured() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    scripted = torch.jit.script(network)
    optimizer = torch.optim.SGD(scripted.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"0 is in a TorchScript module, .*: give watch the module that was scripted"):
        watch(scripted, optimizer, run=False)
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    for _ in range(2):
        step(optimizer, scripted)
        recorder.note()
    monitor.close()
    assert_equals(monitor, recorder)


def test_what_cannot_be_measured_is_refused() -> None:
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    with pytest.raises(UserError, match="no values yet"):
        watch(empty, run=False)
    partitioned = nn.Linear(3, 4)
    partitioned.weight.ds_id = 0  # type: ignore[assignment]
    with pytest.raises(UserError, match="DeepSpeed ZeRO-3"):
        watch(partitioned, run=False)

    class DeepSpeedOptimizer:
        pass

    class BF16_Optimizer(DeepSpeedOptimizer):
        optimizer = torch.optim.SGD([torch.zeros(16)], lr=0.1)  # of the flattened copy

    for refused in (DeepSpeedOptimizer(), BF16_Optimizer()):
        with pytest.raises(UserError, match=r"monitor\.measure\(\)"):
            watch(nn.Linear(3, 4), refused, run=False)  # type: ignore[arg-type]
