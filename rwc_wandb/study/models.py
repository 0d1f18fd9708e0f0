"""The networks: the paper's three for 32x32 images, and any other of timm and torchvision by name.

To add a model of your own, write a function like `_resnet18` and add it to `PAPER_MODELS`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from rwc_wandb.errors import UserError


def _resnet18(channels: int, classes: int) -> nn.Module:
    """torchvision's ResNet18 with a 3x3 stem of stride 1 and no max-pool: the usual change for 32x32 images."""
    model = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    # torchvision initialises its convolutions so; a new one would get torch's default.
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _vgg19_bn(channels: int, classes: int) -> nn.Module:
    """torchvision's VGG19 with batch norm, and one Linear(512, classes) in place of the 4096-wide layers."""
    model = torchvision.models.vgg19_bn(num_classes=classes)
    model.features[0] = nn.Conv2d(channels, 64, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(model.features[0].weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(model.features[0].bias)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, classes)
    return model


def _alexnet(channels: int, classes: int) -> nn.Module:
    """torchvision's AlexNet with the authors' smaller kernels, strides and linear layers for 32x32 images."""
    model = torchvision.models.alexnet(num_classes=classes)
    model.features[0] = nn.Conv2d(channels, 64, kernel_size=3, stride=2, padding=1)
    model.features[3] = nn.Conv2d(64, 192, kernel_size=3, padding=1)
    for index in (2, 5, 12):
        model.features[index] = nn.MaxPool2d(kernel_size=2)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier[1] = nn.Linear(1024, 4096)
    model.classifier[4] = nn.Linear(4096, 1024)
    model.classifier[6] = nn.Linear(1024, classes)
    return model


@dataclass(frozen=True)
class PaperModel:
    """One of the paper's architectures.

    Attributes:
        build: from (channels, classes) to the network.
        smallest: the smallest image side that its pooling leaves something of.
        stages: the paper's stages as (name, how many convolutions); what is left over is `head`. Empty: by block.
    """

    build: Callable[[int, int], nn.Module]
    smallest: int
    stages: tuple[tuple[str, int], ...] = ()


PAPER_MODELS = {
    "resnet18": PaperModel(_resnet18, smallest=8),
    "vgg19_bn": PaperModel(_vgg19_bn, smallest=32, stages=(("early", 4), ("middle", 7), ("later", 5))),
    "alexnet": PaperModel(_alexnet, smallest=32, stages=(("early", 1), ("middle", 2), ("later", 2))),
}


def check_model(name: str) -> None:
    """Raises: UserError, when there is no such model."""
    library, _, inner = name.partition(":")
    if name in PAPER_MODELS or (library == "timm" and inner in timm.list_models()):
        return
    if library == "torchvision" and inner in torchvision.models.list_models(module=torchvision.models):
        return
    raise UserError(
        f"--model {shlex.quote(name)}: it takes {', '.join(PAPER_MODELS)}, timm:NAME (see timm.list_models()) "
        f"or torchvision:NAME (see torchvision.models.list_models())."
    )


def smallest_image(name: str) -> int:
    """The side of the smallest images that the study gives to this model."""
    return PAPER_MODELS[name].smallest if name in PAPER_MODELS else 32


def build_model(name: str, channels: int, classes: int, image_size: int) -> nn.Module:
    """A network with freshly initialised weights for `image_size` x `image_size` images of `channels` channels.

    Raises:
        UserError: no such model, or it cannot take such images.
    """
    check_model(name)
    if name in PAPER_MODELS:
        paper = PAPER_MODELS[name]
        if image_size < paper.smallest:
            raise UserError(f"--image-size {image_size}: {name} takes images from {paper.smallest} pixels on.")
        return paper.build(channels, classes)
    library, _, inner = name.partition(":")
    if library == "timm":
        pretrained = timm.models.get_pretrained_cfg(inner)
        size: dict[str, Any] = (
            {"img_size": image_size} if pretrained is not None and pretrained.fixed_input_size else {}
        )
        return timm.create_model(inner, in_chans=channels, num_classes=classes, **size)
    options: dict[str, Any] = {"image_size": image_size} if inner.startswith("vit_") else {}
    if inner in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    model = torchvision.models.get_model(inner, weights=None, num_classes=classes, **options)
    return _with_channels(model, channels)


def build_trainable(name: str, channels: int, classes: int, image_size: int, batch: int) -> nn.Module:
    """`build_model`, checked by one forward pass over a batch of `batch` images.

    Raises:
        UserError: no such model, or it cannot.
    """
    try:
        model = build_model(name, channels, classes, image_size)
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model.train()(torch.zeros(batch, channels, image_size, image_size))
            for key, buffer in model.named_buffers():
                if key in buffers:
                    buffer.copy_(buffers[key])
        if not isinstance(logits, torch.Tensor) or logits.shape != (batch, classes):
            raise ValueError("it gives no logits of the classes")
    except UserError:
        raise
    # Models of other libraries raise all kinds: assertions, torch's errors, errors of arithmetic.
    except Exception as error:
        images = f"{batch} image{'s' if batch > 1 else ''} of {channels}x{image_size}x{image_size}"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"--model {name}: it cannot learn from batches of {images} ({reason}): try another --image-size, a larger "
            "--batch-size or another model."
        ) from error
    return model


def _with_channels(model: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution where it takes another number of channels; torchvision has no option for it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != channels:
                first = nn.Conv2d(
                    channels,
                    module.out_channels,
                    module.kernel_size,  # type: ignore[arg-type]
                    module.stride,  # type: ignore[arg-type]
                    module.padding,  # type: ignore[arg-type]
                    bias=module.bias is not None,
                )
                model.set_submodule(name, first)
            return model
    return model


def paper_stages(name: str, model: nn.Module) -> Callable[[str], str] | None:
    """The paper's stages of its own architectures, as `watch(stages=...)` takes them; None: the default ones."""
    counts = PAPER_MODELS[name].stages if name in PAPER_MODELS else ()
    if not counts:
        return None
    convolutions = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    labels = [stage for stage, count in counts for _ in range(count)]
    return lambda layer: dict(zip(convolutions, labels, strict=True)).get(layer, "head")
