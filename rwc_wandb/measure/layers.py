"""Which tensors of a model are tracked: their names, shapes, depth and stage."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rwc_wandb.measure.choice import LayerChoice, kinds_of, nothing_to_track, selector
from rwc_wandb.measure.distributed.sharding import Sharding, Spread, is_measurable
from rwc_wandb.measure.kinds import kind_of
from rwc_wandb.measure.module_tree import Path, parameters_of
from rwc_wandb.measure.roles import roles_and_blocks

Models = nn.Module | Mapping[str, nn.Module] | Sequence[nn.Module]
"""What can be watched: a module, or several, whose layers' names start with the key or the index."""

_WRAPPERS = re.compile(
    r"(^|(?<=\.))(module|_module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|trainable_module"
    r"|(_functional\.)?_torch_params)\."
)
_BLOCK = re.compile(r"(?:^|\.)(layer|stage|block|group)s?[._]?(\d+)(?=[._]|$)")
_MOST_BLOCKS = 8
"""More blocks than this (a ViT has 12 or more) are no stages any more: thirds by depth are."""


@dataclass
class Layer:
    """One tracked weight tensor.

    Attributes:
        name: module path without wrapper prefixes; the parameter's own name is added unless it is `weight`.
        depth: index in the order of registration, which is the forward order in nearly all model code; 0 first.
        stage: the group of layers that it belongs to.
        parameter: the tensor itself; the rank's part of it, or a DTensor, where it is sharded.
        path: the way to it from the model; empty once it has left the model.
        spread: how it is spread over ranks.
        role: its name without the numbers of the blocks that repeat: `self_attn.q_proj`. See `roles_and_blocks`.
        block: its place in the repetition, 0 first; None: it does not repeat.
        kind: what its module is: "convolution", "depthwise", "linear", "embedding" and so on. See `kind_of`.
        sample: how many of its weights are measured, drawn at random; None: all of them.
    """

    name: str
    depth: int
    stage: str
    parameter: Tensor
    path: Path
    spread: Spread
    role: str
    block: int | None
    kind: str
    sample: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor, however it is spread over ranks."""
        return self.spread.shape

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def as_module(models: Models) -> nn.Module:
    """The module itself, or one that holds several: what one optimizer of a GAN may step.

    Raises:
        TypeError: not made of modules.
    """
    if isinstance(models, nn.Module):
        return models
    if isinstance(models, Mapping) and models and all(isinstance(one, nn.Module) for one in models.values()):
        try:
            return nn.ModuleDict(dict(models))
        except (KeyError, TypeError):
            raise ValueError(
                f"The models are called {list(models)}: watch takes names without dots that no attribute of "
                "torch.nn.ModuleDict has."
            ) from None
    if isinstance(models, (list, tuple)) and models and all(isinstance(one, nn.Module) for one in models):
        return nn.ModuleList(models)
    raise TypeError(
        f"watch needs a torch.nn.Module as its model, or a list or dict of them, not {type(models).__name__}."
    )


def find_layers(
    model: Models,
    choice: LayerChoice = "weights",
    stages: Callable[[str], str] | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> list[Layer]:
    """The tracked layers of `model`, tied weights once, in forward order.

    Args:
        model: any module, wrapped (DDP, `torch.compile`, FSDP) or not: the names are the same. Several: see `Models`.
        choice: see `LayerChoice`. Integer and quantised tensors are never tracked.
        stages: the stage of a layer name; by default blocks such as `layer1` where the module tree shows up to 8 of
            them, otherwise `early`, `middle` and `later`: thirds by depth.
        optimizers: with them, "weights", "all" and roles choose among the parameters in their groups: no averages,
            target networks or other copies. A regular expression and a callable choose among all parameters.

    Raises:
        ValueError: the choice is no valid regular expression, or nothing is left to track; a tensor has no values yet,
            is in a TorchScript module, or is sharded in a way that cannot be measured.
        TypeError: `model` is not made of modules.

    Warns:
        UserWarning: parameters that can be trained, and were chosen, are of a type that is not measured: complex
            numbers, or torchao's quantised ones.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> [(layer.name, layer.stage, layer.shape) for layer in find_layers(model)]
        [('0', 'early', (8, 3, 3, 3)), ('3', 'middle', (10, 288))]
        >>> [layer.name for layer in find_layers(model, "all")]
        ['0', '0.bias', '3', '3.bias']
    """
    model = as_module(model)
    sharding = Sharding(model)
    is_chosen = selector(choice)
    owned = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    is_limited = bool(optimizers) and isinstance(choice, str) and re.match("(weights|all)$|role:", choice) is not None
    unmeasured: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    all_of: dict[int, tuple[str, Tensor, Path, nn.Module, Spread]] = {}
    taken: set[str] = set()
    for full_name, parameter, path, module in parameters_of(model):
        name = _layer_name(full_name, taken)
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name} is in a TorchScript module, which cannot be measured: give watch the module that was scripted "
                "or traced; it has the same weights."
            )
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name} has no shape yet (a lazy module): run one forward pass before watch.")
        seen.add(id(parameter))
        if id(parameter) in all_of or (is_limited and id(parameter) not in owned):
            continue
        if not is_measurable(parameter):
            unmeasured.append((name, parameter))
            continue
        spread = sharding.spread(name, parameter)
        all_of[id(parameter)] = (name, parameter, path, module, spread)
        taken.add(name)
    roles, blocks = roles_and_blocks(
        [name for name, *_ in all_of.values()], [name for name, *_, spread in all_of.values() if len(spread.shape) > 1]
    )
    found = [
        (name, parameter, path, spread, role, block, kind_of(module))
        for (name, parameter, path, module, spread), role, block in zip(all_of.values(), roles, blocks, strict=True)
        if is_chosen(name, parameter, spread.shape, role)
    ]
    unmeasured = [(name, one) for name, one in unmeasured if is_chosen(name, one, tuple(one.shape), name)]
    is_own = not owned or bool(seen & owned)
    if not found or not is_own:
        raise ValueError(nothing_to_track(model, choice, optimizers, is_own, unmeasured))
    left_out = [(name, parameter) for name, parameter in unmeasured if parameter.requires_grad]
    if left_out and isinstance(choice, str):
        warnings.warn(
            f"rwc_wandb does not measure {listed([name for name, _ in left_out])} of {type(model).__name__}: "
            f"{kinds_of(left_out)} cannot be measured.",
            stacklevel=3,
        )
    names = [name for name, *_ in found]
    labels = [stages(name) for name in names] if stages else default_stages(names)
    if odd := [label for label in labels if not isinstance(label, str) or not label]:
        raise ValueError(f"stages says {odd[0]!r} for a layer: it takes a function that gives a text for each.")
    return [
        Layer(name, depth, stage, parameter, path, spread, role, block, kind)
        for depth, (stage, (name, parameter, path, spread, role, block, kind)) in enumerate(
            zip(labels, found, strict=True)
        )
    ]


def merged_layers(known: Sequence[Layer], found: Sequence[Layer]) -> list[Layer]:
    """The `known` layers and those of `found` that are new, in the order of `found`; known ones keep their names."""
    by_identity = {id(layer.parameter): layer for layer in known}
    names = {layer.name for layer in known}
    merged: list[Layer] = []
    for layer in found:
        same = by_identity.get(id(layer.parameter))
        if same is not None:
            same.stage, same.role, same.block = layer.stage, layer.role, layer.block
            merged.append(same)
        elif layer.name not in names:
            merged.append(layer)
    for index, layer in enumerate(known):
        if not any(layer is one for one in merged):
            before = [at for at, one in enumerate(merged) if any(one is earlier for earlier in known[:index])]
            merged.insert(before[-1] + 1 if before else 0, layer)
    for depth, layer in enumerate(merged):
        layer.depth = depth
    return merged


def default_stages(names: Sequence[str]) -> list[str]:
    """`layer1 .. layer4`-like blocks where the names show 2 to 8 of them, with `stem` before and `head` after them;
    otherwise thirds by depth: `early`, `middle`, `later`."""
    blocks = [_BLOCK.search(name) for name in names]
    labels = [block and f"{block[1]}{block[2]}" for block in blocks]
    if 2 <= len({label for label in labels if label}) <= _MOST_BLOCKS:
        first = next(depth for depth, label in enumerate(labels) if label)
        return [label or ("stem" if depth < first else "head") for depth, label in enumerate(labels)]
    return [("early", "middle", "later")[3 * depth // len(names)] for depth in range(len(names))]


def listed(names: Sequence[str]) -> str:
    """The first five names, for a warning."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def counted(names: Sequence[str]) -> str:
    """How many layers, and the first five names: `1 layer (fc)`."""
    return f"{len(names)} {'layer' if len(names) == 1 else 'layers'} ({listed(names)})"


def _layer_name(full_name: str, taken: set[str]) -> str:
    clean = _WRAPPERS.sub("", full_name)
    # `rwc/step` is the x axis of every chart: no layer may be called that.
    candidates = (name for name in (clean.removesuffix(".weight"), clean) if name != "step" and name not in taken)
    return next(candidates, full_name)
