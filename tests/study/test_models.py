"""The paper's three networks, layer by layer, and others by name."""

import pytest
import torch
from torch import nn

from rwc_wandb.errors import UserError
from rwc_wandb.measure.layers import find_layers
from rwc_wandb.study.models import build_model, paper_stages


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [layer.shape for layer in find_layers(model)]


def test_resnet18() -> None:
    model = build_model("resnet18", 3, 10, 32)
    assert shapes(model)[0] == (64, 3, 3, 3)
    assert model.conv1.stride == (1, 1)
    assert isinstance(model.maxpool, nn.Identity)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert model.layer1(model.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert build_model("resnet18", 1, 10, 8).eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_vgg19_bn() -> None:
    model = build_model("vgg19_bn", 1, 10, 32)
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    assert [shape[0] for shape in shapes(model)] == [*widths, 10]
    assert all(shape[2:] == (3, 3) for shape in shapes(model)[:-1])
    assert shapes(model)[-1] == (10, 512)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    stage = paper_stages("vgg19_bn", model)
    assert stage is not None
    assert [layer.stage for layer in find_layers(model, stages=stage)] == (
        ["early"] * 4 + ["middle"] * 7 + ["later"] * 5 + ["head"]
    )


def test_alexnet() -> None:
    model = build_model("alexnet", 3, 100, 32)
    assert shapes(model) == [
        (64, 3, 3, 3),
        (192, 64, 3, 3),
        (384, 192, 3, 3),
        (256, 384, 3, 3),
        (256, 256, 3, 3),
        (4096, 1024),
        (1024, 4096),
        (100, 1024),
    ]
    assert model.features[0].stride == (2, 2)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    stage = paper_stages("alexnet", model)
    assert stage is not None
    found = [layer.stage for layer in find_layers(model, stages=stage)]
    assert found == ["early", "middle", "middle", "later", "later", "head", "head", "head"]


@pytest.mark.parametrize(
    "name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:regnet_y_400mf", "torchvision:vit_b_16"]
)
def test_others_by_name(name: str) -> None:
    channels = 1 if "vit_b" not in name else 3
    model = build_model(name, channels, 7, 32).eval()
    assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


def test_first_convolutions_start_as_torchvision_s_do() -> None:
    torch.manual_seed(0)
    for name in ("resnet18", "vgg19_bn"):
        weight = find_layers(build_model(name, 3, 10, 32))[0].parameter
        assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["resnet19", "timm:resnet19", "torchvision:nothing", "hub:resnet18", ""])
def test_no_such_model(name: str) -> None:
    with pytest.raises(UserError, match=r"--model .*: it takes resnet18, vgg19_bn, alexnet, timm:NAME"):
        build_model(name, 3, 10, 32)


def test_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match="--image-size 8: alexnet takes images from 32 pixels on"):
        build_model("alexnet", 1, 10, 8)
