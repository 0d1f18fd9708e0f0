"""The Triton kernels of `sampled_gpu.GPUSampledReduction`: one program per chunk of a sample.

A row of `table` (int64 [chunks, 9]) is a chunk: address of the rank's elements, their number, first slot in the
snapshot, elements of the chunk (an even number, at most BLOCK), layer, first slice, and key, length and start of the
`Sample`.
Per element a program reads one weight, 32 bytes of memory around it, reads the snapshot and writes it.

This file has no `from __future__ import annotations`: Triton's interpreter reads the annotations and needs no strings.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def _mixed(bits):
    """The finaliser of `sampling.MULTIPLIERS`, of unsigned 32-bit numbers."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _drawn(row, draw, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Slots in the snapshot, which of them the chunk has, which of these are this rank's, and the weights (else 0)."""
    in_chunk = tl.arange(0, BLOCK)
    slots = tl.load(row + 2) + in_chunk
    has = in_chunk < tl.load(row + 3)
    slices = tl.load(row + 5) + in_chunk
    bits = _mixed(_mixed((slices + tl.load(row + 6)).to(tl.uint32)) + draw.to(tl.uint32))
    random = (bits >> 1).to(tl.int64)
    length = tl.load(row + 7)
    places = slices * length + (random * length >> 31) - tl.load(row + 8)
    ours = has & (places >= 0) & (places < tl.load(row + 1))
    weights = tl.load(row).to(tl.pointer_type(ELEMENT))
    return slots, has, ours, tl.load(weights + places, mask=ours, other=0.0)


@triton.jit
def _pairs(values, BLOCK: tl.constexpr):
    """The elements of slices 2j, and those of slices 2j + 1."""
    return tl.split(tl.reshape(values, [BLOCK // 2, 2]))


@triton.jit(do_not_specialize=["draw"])
def gather_sample(table, draw, target, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """The weights of the draw into `target` (their dtype, like the snapshot); NaN where another rank has them."""
    row = table + 9 * tl.program_id(0).to(tl.int64)
    slots, has, ours, values = _drawn(row, draw, ELEMENT, BLOCK)
    tl.store(target + slots, values, mask=ours)
    tl.store(target + slots, tl.full([BLOCK], float("nan"), tl.float32), mask=has & (ours == 0))


@triton.jit(do_not_specialize=["draw"])
def measure_sample(table, draw, spreads, snapshot, sums, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """The statistics of each chunk into `sums` (float64 [8, chunks], rows as in `Statistic`); it becomes its snapshot.

    `spreads`: float64 [L], `Sample.spread`.
    """
    row = table + 9 * tl.program_id(0).to(tl.int64)
    slots, _, ours, stored = _drawn(row, draw, ELEMENT, BLOCK)
    old = tl.load(snapshot + slots, mask=ours, other=0.0).to(tl.float32)
    tl.store(snapshot + slots, stored, mask=ours)
    new = stored.to(tl.float32)
    size = tl.abs(old)
    is_counted = size != 0.0
    ratio = tl.where(is_counted, tl.abs(new - old) / tl.where(is_counted, size, 1.0), 0.0)
    # As the exact kernels round: the difference in float32, all that follows in float64.
    change = tl.abs(new - old).to(tl.float64)
    norm = size.to(tl.float64)
    counted = tl.where(is_counted, 1, 0) + tl.where(tl.abs(new) < float("inf"), 0, 65536)
    counted = tl.sum(counted.to(tl.uint32))
    change_a, change_b = _pairs(change, BLOCK)
    norm_a, norm_b = _pairs(norm, BLOCK)
    ours_a, ours_b = _pairs(ours.to(tl.int32), BLOCK)
    is_pair = (ours_a & ours_b) != 0
    of_change = tl.where(is_pair, change_a - change_b, 0.0)
    of_norm = tl.where(is_pair, norm_a - norm_b, 0.0)
    spread = tl.load(spreads + tl.load(row + 4))
    chunks = tl.num_programs(0).to(tl.int64)
    target = sums + tl.program_id(0)
    tl.store(target, tl.sum(change))
    tl.store(target + chunks, tl.sum(norm))
    tl.store(target + 2 * chunks, tl.sum(ratio.to(tl.float64)))
    tl.store(target + 3 * chunks, (counted & 65535).to(tl.float64))
    tl.store(target + 4 * chunks, (counted >> 16).to(tl.float64))
    tl.store(target + 5 * chunks, spread * tl.sum(of_change * of_change))
    tl.store(target + 6 * chunks, spread * tl.sum(of_norm * of_norm))
    tl.store(target + 7 * chunks, spread * tl.sum(of_change * of_norm))
