"""Names, order, stages and choice of the tracked layers."""

import pytest
import torch
import torchvision
from torch import nn

from rwc_wandb.measure.layers import default_stages, find_layers


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def names(model: nn.Module, choice="weights") -> list[str]:  # type: ignore[no-untyped-def]
    return [layer.name for layer in find_layers(model, choice)]


def test_weights_are_what_has_more_than_one_dimension() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    layers = find_layers(model)
    assert len(layers) == 21
    assert [layers[0].name, layers[1].name, layers[-1].name] == ["conv1", "layer1.0.conv1", "fc"]
    assert [layer.depth for layer in layers] == list(range(21))
    assert layers[0].shape == (64, 3, 7, 7)
    assert layers[0].parameter is model.conv1.weight
    expected = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    assert [layer.name + ".weight" for layer in layers] == expected


def test_choices() -> None:
    assert names(mlp()) == ["0", "2"]
    assert names(mlp(), "all") == ["0", "0.bias", "1", "1.bias", "2", "2.bias"]
    assert names(mlp(), "^2") == ["2", "2.bias"]
    assert names(mlp(), lambda name, parameter: parameter.numel() == 8) == ["0.bias", "1", "1.bias"]


def test_wrappers_leave_no_trace() -> None:
    plain = names(mlp())
    assert names(nn.DataParallel(mlp())) == plain
    assert names(torch.compile(mlp())) == plain
    assert names(nn.DataParallel(torch.compile(nn.Sequential(mlp())))) == ["0.0", "0.2"]


def test_a_child_that_is_called_module_keeps_names_apart() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Linear(2, 2)
            self.module = nn.ModuleDict({"conv": nn.Linear(2, 2)})
            self.step = nn.Linear(2, 2)

    found = names(Odd())
    assert len(set(found)) == 3
    assert "step" not in found


def test_tied_weights_come_once_and_integers_never() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10)})
    model["head"].weight = model["embedding"].weight
    model.register_parameter("codes", nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False))
    assert names(model) == ["embedding"]


def test_frozen_layers_are_tracked() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    assert names(model) == ["0", "2"]


def test_stages() -> None:
    resnet = [layer.stage for layer in find_layers(torchvision.models.resnet18())]
    assert resnet == ["stem"] + ["layer1"] * 4 + ["layer2"] * 5 + ["layer3"] * 5 + ["layer4"] * 5 + ["head"]
    assert default_stages([f"blocks.{i}.mlp" for i in range(12)]) == ["early"] * 4 + ["middle"] * 4 + ["later"] * 4
    assert default_stages(["stages.0.a", "stages.1.a", "fc"]) == ["stage0", "stage1", "head"]
    assert default_stages(["fc"]) == ["early"]
    assert [layer.stage for layer in find_layers(mlp(), stages=lambda name: f"s{name}")] == ["s0", "s2"]


def test_bad_choices() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module.*int"):
        find_layers(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing"):
        find_layers(mlp(), "nothing")
    with pytest.raises(ValueError, match=r"layers='\('.*regular expression"):
        find_layers(mlp(), "(")
    with pytest.raises(ValueError, match="forward pass"):
        find_layers(nn.Sequential(nn.LazyLinear(3)))
