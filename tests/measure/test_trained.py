"""Only what is trained is measured: the weights in the optimizers' groups, without copies, and groups added later."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from outsider import Recorder, assert_equals, model, step, weights
from torch import nn

from rwc_wandb import History, find_layers, watch
from rwc_wandb.measure import tracked
from rwc_wandb.measure.series.trends import depth_trend


class WithTarget(nn.Module):
    """A network and a slow copy of it, as of DQN, BYOL or an average of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.online = model()
        self.target = copy.deepcopy(self.online).requires_grad_(False)


@pytest.mark.parametrize("choice", ["weights", "all"])
def test_copies_are_no_layers(choice: str) -> None:
    both = WithTarget()
    optimizer = torch.optim.SGD(both.online.parameters(), lr=0.1)
    monitor = watch(both, optimizer, run=False, layers=choice)
    recorder = Recorder([layer.parameter for layer in monitor.layers])
    for _ in range(3):
        step(optimizer, both.online)
        recorder.note()
    monitor.close()
    assert all(layer.name.startswith("online.") for layer in monitor.layers)
    assert len(monitor.layers) == (2 if choice == "weights" else 6)
    assert_equals(monitor, recorder)


def test_a_regular_expression_widens_to_the_whole_model() -> None:
    both = WithTarget()
    optimizer = torch.optim.SGD(both.online.parameters(), lr=0.1)
    with watch(both, optimizer, run=False, layers=r"line.3$|target.3$") as monitor:
        assert [layer.name for layer in monitor.layers] == ["online.3", "target.3"]
    assert len(find_layers(both)) == 4


@pytest.mark.parametrize("every", [1, 2])
def test_a_parameter_group_added_later(every: int) -> None:
    """Its layers join the series in forward order with the first measurement that has something to compare with."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(network[1].parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False, every=every, log_every=3)
    assert monitor.history.layers == ["1"]
    recorder = Recorder(weights(network))
    for index in range(10):
        if index == 4:
            optimizer.add_param_group({"params": network[0].parameters()})
        if index == 6:
            optimizer.add_param_group({"params": network[2].parameters()})
        step(optimizer, network)
        recorder.note()
    monitor.close()
    assert monitor.history.layers == [layer.name for layer in monitor.layers] == ["0", "1", "2"]
    assert [layer.depth for layer in monitor.layers] == [0, 1, 2]
    assert monitor.history.stages == ["early", "middle", "later"]
    expected = recorder.series(every=every)
    assert monitor.history.steps.tolist() == list(range(every, 11, every))
    for layer, added in ((0, 4), (2, 6)):
        expected[: added // every + 1, layer] = np.nan
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)


def test_layers_that_were_added_resume() -> None:
    network = model()
    optimizer = torch.optim.SGD(network[3].parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    step(optimizer, network)
    optimizer.add_param_group({"params": network[0].parameters()})
    step(optimizer, network)
    state = monitor.state_dict()
    monitor.close()
    resumed = watch(network, optimizer, run=False)
    resumed.load_state_dict(state)
    step(optimizer, network)
    resumed.close()
    assert resumed.history.layers == ["0", "3"]
    assert resumed.history.steps.tolist() == [1, 2, 3]
    assert np.isfinite(resumed.history.rwc[2]).all()


def test_layers_that_do_not_move_count_in_no_mean() -> None:
    history = History(["a", "b", "c", "d"], ["early", "early", "early", "later"], [1] * 4)
    rwc = np.array([[0, 0.25, 0.75, 0], [0, np.nan, 0.5, np.nan]])
    history.append([1, 2], rwc, rwc)
    names, means = history.stage_means(history.rwc)
    assert names == ["early", "later"]
    np.testing.assert_array_equal(means, [[0.5, 0], [0.5, np.nan]])
    assert depth_trend(np.array([0.0, 3.0, 0.0, 2.0, 1.0])) == pytest.approx(-1)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, dtype=torch.complex64)
        self.second = nn.Linear(3, 3)


def test_complex_weights_are_said() -> None:
    with pytest.warns(UserWarning, match=r"does not measure first of Waves: complex64 cannot be measured"):
        assert [layer.name for layer in find_layers(Waves())] == ["second"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_layers(Waves(), "second")


def test_an_average_that_is_swapped_in_and_out_is_no_jump() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    for index in range(4):
        step(optimizer, network)
        recorder.note()
        own = copy.deepcopy(network.state_dict())
        if index != 2:
            network.load_state_dict({name: value * 0.5 for name, value in own.items()})
        if index != 1:
            network.load_state_dict(own)
    monitor.close()
    expected = recorder.series()
    expected[2] = np.nan
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)


@pytest.mark.parametrize("sample", [None, 16])
def test_a_load_compares_each_layer_once(monkeypatch: pytest.MonkeyPatch, sample: int | None) -> None:
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))
    own = copy.deepcopy(network.state_dict())
    compared: list[int] = []
    are_same = tracked._are_same

    def counted(weight: torch.Tensor, snapshot: torch.Tensor) -> bool:
        compared.append(weight.numel())
        return are_same(weight, snapshot)

    with watch(network, run=False, sample=sample) as monitor:
        monitor.measure()
        monkeypatch.setattr(tracked, "_are_same", counted)
        network.load_state_dict(own | {"7.weight": own["7.weight"] + 1})
        assert compared == [sample or 64] * 30
        network[12].load_state_dict({"weight": own["12.weight"] * 2, "bias": own["12.bias"]})
        network[7].load_state_dict({"weight": own["7.weight"], "bias": own["7.bias"]})
        network[20].weight.data = own["20.weight"] * 3
        network[20].load_state_dict(network[20].state_dict())
        assert compared == [sample or 64] * 32
        monitor.measure()
    rwc = monitor.history.rwc
    assert (rwc[0] == 0).all()
    assert np.flatnonzero(np.isnan(rwc[1])).tolist() == [12, 20]
    assert (np.delete(rwc[1], [12, 20]) == 0).all()


class StepsByAnotherName(torch.optim.SGD):
    def update(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


def test_weights_that_move_without_a_step_are_said() -> None:
    network = model()
    optimizer = StepsByAnotherName(network.parameters(), lr=0.1)
    monitor = watch(network, optimizer, run=False)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.update()
    with pytest.warns(UserWarning, match=r"changed and StepsByAnotherName made no step: .*monitor\.measure\(\)"):
        monitor.close()


def test_an_optimizer_that_is_replaced_is_said() -> None:
    network = model()
    first = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, first, run=False)
    for optimizer in (first, torch.optim.AdamW(network.parameters())):
        step(optimizer, network)
        step(optimizer, network)
    with pytest.warns(UserWarning, match="changed since step 2, the last that SGD made"):
        monitor.close()
    assert monitor.history.steps.tolist() == [1, 2]


def test_one_replaced_layer_is_one_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with watch(network, optimizer, run=False):
        step(optimizer, network)
        network[1] = nn.Linear(4, 4)
        with pytest.warns(UserWarning, match=r"the weights of 1 layer \(1\) were replaced"):
            step(optimizer, network)


def test_modules_in_a_plain_list_are_told_where_to_go() -> None:
    network = nn.Module()
    network.parts = [nn.Linear(4, 4), nn.Linear(4, 4)]  # type: ignore[assignment]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in network.parts]
    with pytest.raises(ValueError, match=r"Module has no parameters\. .* give watch the list"):
        watch(network, optimizers, run=False)
    assert len(watch(network.parts, optimizers, run=False).layers) == 2


def test_an_optimizer_that_is_replaced_with_the_weights_is_said() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    first = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, first, run=False)
    step(first, network)
    network[0] = nn.Linear(4, 4)
    second = torch.optim.AdamW(network.parameters())
    step(second, network)
    with pytest.warns(UserWarning, match="changed since step 1, the last that SGD made: .* Give watch AdamW too"):
        monitor.close()


def test_a_monitor_that_is_never_told_to_measure_is_said() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = watch(network, run=False)
    step(optimizer, network)
    with pytest.warns(
        UserWarning, match=r"changed and monitor\.measure\(\) was not called: .* Give watch the optimizer"
    ):
        monitor.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(network, run=False) as monitor:
            step(optimizer, network)
            monitor.measure()
            step(optimizer, network)
        with watch(network, run=False):
            pass


def test_clipping_after_the_last_step_is_called_no_harm() -> None:
    network = model()
    optimizer = torch.optim.RMSprop(network.parameters())
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    for _ in range(3):
        step(optimizer, network)
        recorder.note()
        for parameter in network.parameters():
            parameter.data.clamp_(-0.01, 0.01)
    with pytest.warns(UserWarning, match="no harm where it is clipping"):
        monitor.close()
    assert_equals(monitor, recorder)


def test_what_another_monitor_has_measured_is_not_said() -> None:
    """InfoGAN: a third optimizer steps the weights of the first two."""
    network = model()
    first = torch.optim.SGD(network.parameters(), lr=0.1)
    second = torch.optim.Adam(network.parameters())
    monitors = [watch(network, optimizer, run=False) for optimizer in (first, second)]
    recorder = Recorder(weights(network))
    for _ in range(3):
        step(first, network)
        step(second, network)
        recorder.note()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for monitor in monitors:
            monitor.close()
    assert_equals(monitors[1], recorder)


def test_weights_that_are_replaced_after_the_last_step_are_an_export() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(network, optimizer, run=False):
            step(optimizer, network)
            network[0].weight = nn.Parameter(network[0].weight.half())


def test_a_training_that_ends_as_it_should_says_nothing() -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch(network, optimizer, run=False).close()
        with watch(network, optimizer, run=False, every=2):
            for _ in range(3):
                step(optimizer, network)
        with watch(network, optimizer, run=False):
            step(optimizer, network)
            network.load_state_dict({name: value * 2 for name, value in network.state_dict().items()})


@pytest.mark.parametrize("way", ["in place of a group", "to a group"])
def test_a_parameter_added_without_one_more_group(way: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD([{"params": network[0].parameters()}, {"params": network[1].parameters()}], lr=0.1)
    monitor = watch(network, optimizer, run=False)
    recorder = Recorder(weights(network))
    for index in range(5):
        if index == 2:
            if way == "to a group":
                optimizer.param_groups[0]["params"].extend(network[2].parameters())
            else:
                optimizer.param_groups.pop()
                optimizer.add_param_group({"params": network[2].parameters()})
        step(optimizer, network)
        recorder.note()
    monitor.close()
    expected = recorder.series()
    expected[:3, 2] = np.nan
    assert monitor.history.layers == ["0", "1", "2"]
    np.testing.assert_allclose(monitor.history.rwc, expected, rtol=1e-6)
