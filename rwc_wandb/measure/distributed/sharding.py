"""How a model's parameters are spread over ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rwc_wandb.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class FlatShard:
    """Where FSDP (version 1, `use_orig_params=True`) keeps a parameter: elements start..stop of its flattened form."""

    shape: tuple[int, ...]
    start: int
    stop: int
    is_sharded: bool
    is_counted: bool


@dataclass(frozen=True)
class Spread:
    """How a parameter is spread over ranks.

    Attributes:
        shape: that of the whole parameter.
        is_sharded: whether no rank has all of it.
        is_dtensor: whether it is a DTensor (FSDP2, tensor parallel).
        flat: where FSDP1 keeps it; None under anything else.
    """

    shape: tuple[int, ...]
    is_sharded: bool
    is_dtensor: bool
    flat: FlatShard | None


class Sharding:
    """How a model's parameters are spread over ranks, asked once of the whole model."""

    def __init__(self, model: nn.Module) -> None:
        settle(model)
        self._flat = _flat_shards(model)

    def spread(self, name: str, parameter: Tensor) -> Spread:
        """How the parameter called `name` is spread.

        Raises:
            UserError: it has no values yet, or is spread in a way that cannot be measured.
        """
        flat = self._flat.get(id(parameter))
        if flat is not None:
            return Spread(flat.shape, flat.is_sharded, False, flat)
        shape = _checked_shape(name, parameter)
        if not is_dtensor(parameter):
            return Spread(shape, False, False, None)
        placed = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        is_sharded = any(not placement.is_replicate() and size > 1 for placement, size in placed)
        return Spread(shape, is_sharded, True, None)


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    # Importing it takes long; code that makes such a tensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_measurable(tensor: Tensor) -> bool:
    """Whether its elements are floating-point numbers in memory; not so integers and the quantised types of torchao."""
    return tensor.is_floating_point() and (is_dtensor(tensor) or not is_traceable_wrapper_subclass(tensor))


def _checked_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor.

    Raises:
        UserError: it has no values yet, or is spread in a way that cannot be measured.
    """
    if hasattr(tensor, "ds_id"):
        raise UserError(
            f"{name} is partitioned by DeepSpeed ZeRO-3, which watch cannot measure: use FSDP, or ZeRO-2 with "
            "watch(model) and monitor.measure() after each step of the engine."
        )
    if name.endswith("_flat_param"):
        raise UserError(f"{name} hides its layers: give FullyShardedDataParallel use_orig_params=True before watch.")
    if tensor.is_meta:
        raise UserError(f"{name} has no values yet (meta device): call watch after the weights are materialised.")
    if not is_dtensor(tensor) and tensor.device.type not in ("cpu", "cuda") and not _has_address(tensor):
        raise UserError(
            f"{name} is on the device {tensor.device}, where weights have no address (lazy tensors), which watch "
            "cannot measure: train on cpu, cuda, mps or xpu."
        )
    if not is_dtensor(tensor) and tensor.layout != torch.strided:
        raise UserError(
            f"{name} is stored sparsely ({tensor.layout}), which watch cannot measure: choose other layers."
        )
    if is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
        raise UserError(
            f"{name} has a Partial placement, so no rank has its values: redistribute it to Shard or Replicate."
        )
    return tuple(tensor.shape)


def _has_address(tensor: Tensor) -> bool:
    try:
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:
        return False


def settle(model: nn.Module) -> None:
    """Show the sharded parameters again where FSDP2 has left unsharded ones standing after a forward pass."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def _flat_shards(model: nn.Module) -> dict[int, FlatShard]:
    """By the identity of the parameter: the original shapes that FSDP1 keeps, and the part that this rank has."""
    found = {}
    for module, flat_parameter in _flat_parameters(model):
        handle = module._handle
        is_counted = 0 in torch.distributed.get_process_group_ranks(module.process_group)
        infos = zip(flat_parameter._params, flat_parameter._shapes, flat_parameter._shard_param_infos, strict=True)
        for parameter, shape, info in infos:
            if not handle.uses_sharded_strategy:
                # Every rank has all of it, as a flat view.
                counted = torch.distributed.get_rank() == 0
                found[id(parameter)] = FlatShard(tuple(shape), 0, math.prod(shape), False, counted)
                continue
            start, stop = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
            found[id(parameter)] = FlatShard(tuple(shape), start, stop, True, is_counted)
    return found


def _flat_parameters(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    for module in model.modules():
        # FSDP1 has no public way to ask for the shapes that it has flattened.
        flat_parameter = getattr(getattr(module, "_handle", None), "flat_param", None)
        if getattr(flat_parameter, "_params", None) is not None:
            yield module, flat_parameter
