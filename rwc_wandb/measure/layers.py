"""Which tensors of a model are tracked: their names, shapes, depth and stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LayerChoice = str | Callable[[str, Tensor], bool]
"""Which parameters are tracked: "weights" (more than one dimension, the paper's choice), "all", a regular expression
searched for in the layer's name, or a callable of (name, parameter)."""

Path = list[tuple[dict[str, Any], str, object]]

_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BLOCK = re.compile(r"(?:^|\.)(layer|stage|block|group)s?[._]?(\d+)(?=[._]|$)")
_MOST_BLOCKS = 8
"""More blocks than this (a ViT has 12 or more) are no stages any more: thirds by depth are."""


@dataclass
class Layer:
    """One tracked weight tensor.

    Attributes:
        name: module path without wrapper prefixes; the parameter's own name is added unless it is `weight`.
        depth: place in the order of registration, which is the forward order in nearly all model code; 0 first.
        stage: the group of layers that it belongs to.
        parameter: the tensor itself.
        path: the ways to it, `(mapping, key, expected)`: while every mapping still holds what is expected, nobody has
            replaced the parameter or a module above it.
    """

    name: str
    depth: int
    stage: str
    parameter: Tensor
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)


def find_layers(
    model: nn.Module, choice: LayerChoice = "weights", stages: Callable[[str], str] | None = None
) -> list[Layer]:
    """The tracked layers of `model`, tied weights once, in forward order.

    Args:
        model: any module, wrapped (DDP, `torch.compile`, FSDP) or not: the names are the same.
        choice: see `LayerChoice`. Integer and quantised tensors are never tracked.
        stages: the stage of a layer name; by default blocks such as `layer1` where the module tree shows up to 8 of
            them, otherwise `early`, `middle` and `later`: thirds by depth.

    Raises:
        ValueError: the choice is no valid regular expression, or nothing is left to track.
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"watch needs a torch.nn.Module as its model, not {type(model).__name__}.")
    is_chosen = _selector(choice)
    found: dict[int, tuple[str, Tensor, Path]] = {}
    taken: set[str] = set()
    for full_name, parameter, path in _walk(model):
        name = _layer_name(full_name, taken)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet (a lazy module): run one forward pass before watch.")
        if id(parameter) in found or not parameter.is_floating_point() or not is_chosen(name, parameter):
            continue
        found[id(parameter)] = (name, parameter, path)
        taken.add(name)
    if not found:
        raise ValueError(f"No layer to track: layers={choice!r} matches no parameter of {type(model).__name__}.")
    names = [name for name, _, _ in found.values()]
    places = [stages(name) for name in names] if stages else default_stages(names)
    return [
        Layer(name, depth, stage, parameter, path)
        for depth, (stage, (name, parameter, path)) in enumerate(zip(places, found.values(), strict=True))
    ]


def default_stages(names: Sequence[str]) -> list[str]:
    """`layer1 .. layer4`-like blocks where the names show 2 to 8 of them, with `stem` before and `head` after them;
    otherwise thirds by depth: `early`, `middle`, `later`."""
    blocks = [_BLOCK.search(name) for name in names]
    labels = [block and f"{block[1]}{block[2]}" for block in blocks]
    if 2 <= len({label for label in labels if label}) <= _MOST_BLOCKS:
        first = next(depth for depth, label in enumerate(labels) if label)
        return [label or ("stem" if depth < first else "head") for depth, label in enumerate(labels)]
    return [("early", "middle", "later")[3 * depth // len(names)] for depth in range(len(names))]


def _selector(choice: LayerChoice) -> Callable[[str, Tensor], bool]:
    if callable(choice):
        return choice
    if choice == "weights":
        return lambda name, parameter: parameter.dim() > 1
    if choice == "all":
        return lambda name, parameter: True
    try:
        pattern = re.compile(choice)
    except (re.error, TypeError) as error:
        raise ValueError(
            f'layers={choice!r} is no valid choice ({error}): use "weights", "all", a regular expression or a callable.'
        ) from None
    return lambda name, parameter: bool(pattern.search(name))


def _layer_name(full_name: str, taken: set[str]) -> str:
    clean = _WRAPPERS.sub("", full_name)
    # `rwc/step` is the x axis of every chart: no layer may be called that.
    candidates = (name for name in (clean.removesuffix(".weight"), clean) if name != "step" and name not in taken)
    return next(candidates, full_name)


def _walk(model: nn.Module) -> Iterator[tuple[str, Tensor, Path]]:
    """Yield (name, parameter, path) in registration order; modules and parameters that are shared come once each."""
    pending: list[tuple[str, nn.Module, Path]] = [("", model, [])]
    seen: set[int] = set()
    while pending:
        prefix, module, path = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for key, parameter in module._parameters.items():
            if isinstance(parameter, torch.Tensor):
                yield prefix + key, parameter, [*path, (module._parameters, key, parameter)]
        children = [
            (f"{prefix}{key}.", child, [*path, (module._modules, key, child)])
            for key, child in module._modules.items()
            if child is not None
        ]
        pending.extend(reversed(children))
