"""How a layer is spread over ranks, and which part of it this rank measures.

The statistics of a layer are plain sums over its elements: each rank sums over its part, every element counts on one
rank only, and `ranks.Ranks` adds the sums up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rwc_wandb.errors import UserError
from rwc_wandb.measure.kernels.flat_memory import flat, is_dense

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

SLICE_ALIGNMENT = 64
"""Elements: where shared work is cut, so that vector loads stay aligned."""


@dataclass
class Piece:
    """What this rank measures of one layer.

    Attributes:
        weight: a view of the weights; without elements where other ranks measure them.
        part_of: from a tensor of the whole layer's shape, its elements that stand where `weight` has its own.
        write: into a contiguous tensor of the whole layer's shape, on the host, a tensor like `weight` where it stands.
    """

    weight: Tensor
    part_of: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], object]


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
        if not _is_dtensor(parameter):
            return Spread(shape, False, False, None)
        placed = zip(parameter.placements, parameter.device_mesh.shape, strict=True)
        is_sharded = any(not placement.is_replicate() and size > 1 for placement, size in placed)
        return Spread(shape, is_sharded, True, None)


def pieces(tensors: Sequence[tuple[Tensor, Spread]], rank: int = 0, size: int = 1, share: bool = False) -> list[Piece]:
    """The part of each tensor that `rank` of `size` measures; of copies the first one counts.

    Args:
        share: whether tensors that every rank holds are divided among the ranks, in equal slices over all of them;
            otherwise rank 0 measures them.
    """
    found: list[Piece | None] = []
    for tensor, spread in tensors:
        if spread.flat is not None:
            found.append(_flat_piece(tensor, spread.flat))
        else:
            found.append(_dtensor_piece(tensor) if _is_dtensor(tensor) else None)
    total = sum(tensor.numel() for (tensor, _), piece in zip(tensors, found, strict=True) if piece is None)
    first, last = (total * rank // size, total * (rank + 1) // size) if share else (0, total if rank == 0 else 0)
    offset, complete = 0, []
    for (tensor, _), piece in zip(tensors, found, strict=True):
        if piece is None:
            piece = _slice(tensor.detach(), first - offset, last - offset)
            offset += tensor.numel()
        complete.append(piece)
    return complete


def _is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    # Importing it takes long; code that makes such a tensor has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_measurable(tensor: Tensor) -> bool:
    """Whether its elements are floating-point numbers in memory; not so integers and the quantised types of torchao."""
    return tensor.is_floating_point() and (_is_dtensor(tensor) or not is_traceable_wrapper_subclass(tensor))


def _checked_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor.

    Raises:
        UserError: it has no values yet, or is spread in a way that cannot be measured.
    """
    if hasattr(tensor, "ds_id"):
        raise UserError(f"{name} is partitioned by DeepSpeed ZeRO-3, which watch cannot measure: use ZeRO-2 or FSDP.")
    if name.endswith("_flat_param"):
        raise UserError(f"{name} hides its layers: give FullyShardedDataParallel use_orig_params=True before watch.")
    if tensor.is_meta:
        raise UserError(f"{name} has no values yet (meta device): call watch after the weights are materialised.")
    if not _is_dtensor(tensor) and tensor.device.type not in ("cpu", "cuda") and not _has_address(tensor):
        raise UserError(
            f"{name} is on the device {tensor.device}, where weights have no address (lazy tensors), which watch "
            "cannot measure: train on cpu, cuda, mps or xpu."
        )
    if not _is_dtensor(tensor) and tensor.layout != torch.strided:
        raise UserError(
            f"{name} is stored sparsely ({tensor.layout}), which watch cannot measure: choose other layers."
        )
    if _is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
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


def _flat_piece(tensor: Tensor, shard: FlatShard) -> Piece:
    weight = tensor.detach().flatten()
    start, stop = shard.start, shard.stop
    if not shard.is_counted:
        weight, stop = weight[:0], start

    def write(whole: Tensor, part: Tensor) -> None:
        whole.view(-1)[start:stop] = part

    return Piece(weight, lambda whole: whole.flatten()[start:stop], write)


def _dtensor_piece(tensor: DTensor) -> Piece:
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = tensor.device_mesh, tensor.placements
    weight = tensor.to_local().detach()
    coordinate = mesh.get_coordinate()
    is_copy = coordinate is None or any(
        place and p.is_replicate() for place, p in zip(coordinate, placements, strict=True)
    )
    # A mesh of some ranks only (FSDP beside tensor parallel): the others have copies in meshes of their own.
    if is_copy or 0 not in mesh.mesh:
        return _nothing(weight)

    def part_of(whole: Tensor, placements: Sequence[Placement] = placements) -> Tensor:
        # From what every rank has to a shard of it nothing is sent.
        spread = DTensor.from_local(whole.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
        return spread.redistribute(placements=placements).to_local()

    def write(whole: Tensor, part: Tensor) -> None:
        # A shard is what some indices of each dimension select: as many numbers as the dimensions are long.
        indices = []
        for dim, length in enumerate(whole.shape):
            own = [place if getattr(place, "dim", None) == dim else Replicate() for place in placements]
            along = torch.arange(length).view([-1 if one == dim else 1 for one in range(whole.dim())])
            indices.append(part_of(along, own).cpu())
        whole[tuple(indices)] = part

    return Piece(weight, part_of, write)


def _nothing(weight: Tensor) -> Piece:
    return Piece(weight.new_empty(0), lambda whole: whole.new_empty(0), lambda whole, part: None)


def _slice(weight: Tensor, first: int, last: int) -> Piece:
    """Elements first..last in memory order, of which this tensor may have all, some or none."""
    start, stop = (_aligned(bound, weight.numel()) for bound in (first, last))
    if (start, stop) == (0, weight.numel()):
        return Piece(weight, lambda whole: whole, Tensor.copy_)
    if start == stop:
        return _nothing(weight)
    if not is_dense(weight):
        # No slice of memory: rank 0 of those that could have one takes it all.
        return Piece(weight, lambda whole: whole, Tensor.copy_) if start == 0 else _nothing(weight)

    def part_of(whole: Tensor) -> Tensor:
        return flat(torch.empty_like(weight, dtype=whole.dtype, device=whole.device).copy_(whole))[start:stop]

    def write(whole: Tensor, part: Tensor) -> None:
        in_memory_order = torch.empty_strided(weight.shape, weight.stride(), dtype=whole.dtype).copy_(whole)
        flat(in_memory_order)[start:stop] = part
        whole.copy_(in_memory_order)

    return Piece(flat(weight)[start:stop], part_of, write)


def _aligned(bound: int, length: int) -> int:
    return length if bound >= length else max(bound, 0) // SLICE_ALIGNMENT * SLICE_ALIGNMENT
