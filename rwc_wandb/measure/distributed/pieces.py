"""Which part of a layer this rank measures, where layers are spread over ranks or measuring is shared.

The statistics of a layer are plain sums over its elements: each rank sums over its part, every element counts on one
rank only, and `ranks.Ranks` adds the sums up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rwc_wandb.measure.distributed.sharding import FlatShard, Spread, is_dtensor
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
        start: the number of the layer's elements before `weight`, in an order in which every rank's are consecutive.
        order: what this order is; "" for that of the layer's indices, which any number of ranks have in common.
    """

    weight: Tensor
    part_of: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], object]
    start: Callable[[], int] = lambda: 0
    order: str = ""


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
            found.append(_dtensor_piece(tensor) if is_dtensor(tensor) else None)
    total = sum(tensor.numel() for (tensor, _), piece in zip(tensors, found, strict=True) if piece is None)
    first, last = (total * rank // size, total * (rank + 1) // size) if share else (0, total if rank == 0 else 0)
    offset, complete = 0, []
    for (tensor, _), piece in zip(tensors, found, strict=True):
        if piece is None:
            piece = _slice(tensor.detach(), first - offset, last - offset)
            offset += tensor.numel()
        complete.append(piece)
    return complete


def _flat_piece(tensor: Tensor, shard: FlatShard) -> Piece:
    weight = tensor.detach().flatten()
    start, stop = shard.start, shard.stop
    if not shard.is_counted:
        weight, stop = weight[:0], start

    def write(whole: Tensor, part: Tensor) -> None:
        whole.view(-1)[start:stop] = part

    return Piece(weight, lambda whole: whole.flatten()[start:stop], write, lambda: start)


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

    def indices(shape: Sequence[int]) -> Iterator[Tensor]:
        # A shard is what some indices of each dimension select: as many numbers as the dimensions are long.
        for dim, length in enumerate(shape):
            own = [place if getattr(place, "dim", None) == dim else Replicate() for place in placements]
            along = torch.arange(length, device="cpu").view([-1 if one == dim else 1 for one in range(len(shape))])
            yield part_of(along, own).cpu()

    def write(whole: Tensor, part: Tensor) -> None:
        whole[tuple(indices(whole.shape))] = part

    def start() -> int:
        # Block by block: those before along the first dimension, within its own part of that along the second, ...
        before, inside, rest = 0, 1, tensor.numel()
        for length, along in zip(tensor.shape, indices(tensor.shape), strict=True):
            rest //= length
            before += int(along.flatten()[0]) * inside * rest
            inside *= along.numel()
        return before

    sharded = [(place, size) for place, size in zip(placements, mesh.shape, strict=True) if not place.is_replicate()]
    is_by_rows = all(getattr(place, "dim", 0) == 0 for place, _ in sharded)
    order = "" if is_by_rows else ", ".join(f"{place} over {size}" for place, size in sharded)
    return Piece(weight, part_of, write, start, f"{order} {_memory_order(weight)}".strip())


def _nothing(weight: Tensor) -> Piece:
    return Piece(weight.new_empty(0), lambda whole: whole.new_empty(0), lambda whole, part: None)


def _slice(weight: Tensor, first: int, last: int) -> Piece:
    """Elements first..last in memory order, of which this tensor may have all, some or none."""
    start, stop = (_aligned(bound, weight.numel()) for bound in (first, last))
    if (start, stop) == (0, weight.numel()):
        return Piece(weight, lambda whole: whole, Tensor.copy_, order=_memory_order(weight))
    if start == stop:
        return _nothing(weight)
    if not is_dense(weight):
        # No slice of memory: rank 0 of those that could have one takes it all.
        return Piece(weight, lambda whole: whole, Tensor.copy_) if start == 0 else _nothing(weight)

    def part_of(whole: Tensor) -> Tensor:
        return flat(torch.empty_like(weight, dtype=whole.dtype, device=whole.device).copy_(whole))[start:stop]

    def write(whole: Tensor, part: Tensor) -> None:
        in_memory_order = torch.empty_strided(weight.shape, weight.stride(), dtype=whole.dtype, device="cpu")
        in_memory_order.copy_(whole)
        flat(in_memory_order)[start:stop] = part
        whole.copy_(in_memory_order)

    return Piece(flat(weight)[start:stop], part_of, write, lambda: start, _memory_order(weight))


def _memory_order(weight: Tensor) -> str:
    """The dimensions by the distance of their elements in memory, where that is not their own order."""
    if weight.is_contiguous() or not is_dense(weight):
        return ""
    strides = weight.stride()
    return f"dimensions {sorted(range(weight.dim()), key=lambda dim: -strides[dim])}"


def _aligned(bound: int, length: int) -> int:
    return length if bound >= length else max(bound, 0) // SLICE_ALIGNMENT * SLICE_ALIGNMENT
