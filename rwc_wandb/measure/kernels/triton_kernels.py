"""The Triton kernels of `gpu.GPUReduction`: one program per chunk, then a few per layer.

A row of `table` (int64 [chunks, 4]) is a chunk: address of its weights, address of its snapshot, elements, layer.
A layer's chunks are consecutive; layer i has those from `firsts[i]` to `firsts[i + 1]`. Sums are taken in an order that
depends on the table only, without atomics; only the histograms' counts, which are integers, are added atomically.

This file has no `from __future__ import annotations`: Triton's interpreter reads the annotations and needs no strings.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def _row(table, ELEMENT: tl.constexpr):
    """Weights and snapshot (pointers), elements, layer of this program's chunk."""
    row = table + 4 * tl.program_id(0).to(tl.int64)
    weights = tl.load(row).to(tl.pointer_type(ELEMENT))
    snapshots = tl.load(row + 1).to(tl.pointer_type(ELEMENT))
    return weights, snapshots, tl.load(row + 2).to(tl.int32), tl.load(row + 3)


@triton.jit
def _can_be_vectors(table, BLOCK: tl.constexpr):
    """Whether this program's chunk consists of whole blocks at addresses that allow 16 bytes per access."""
    row = table + 4 * tl.program_id(0).to(tl.int64)
    return ((tl.load(row) | tl.load(row + 1)) % 16 + tl.load(row + 2) % BLOCK) == 0


@triton.jit
def _offsets(start, BLOCK: tl.constexpr, VECTORS: tl.constexpr):
    offsets = start + tl.arange(0, BLOCK)
    return tl.max_contiguous(tl.multiple_of(offsets, BLOCK), BLOCK) if VECTORS else offsets


@triton.jit
def _load(pointer, offsets, count, VECTORS: tl.constexpr):
    # A mask that may end anywhere keeps the compiler from loading several elements at once.
    if VECTORS:
        return tl.load(tl.multiple_of(pointer + offsets, 16))
    return tl.load(pointer + offsets, mask=offsets < count, other=0.0)


@triton.jit
def _sums_of_chunk(weights, snapshots, count, BLOCK: tl.constexpr, VECTORS: tl.constexpr):
    change = tl.zeros([BLOCK], tl.float32)
    norm = tl.zeros([BLOCK], tl.float32)
    ratio = tl.zeros([BLOCK], tl.float32)
    # Elements with s != 0 in the lower 16 bits, non-finite elements in the upper.
    counted = tl.zeros([BLOCK], tl.int32)
    # While it works on a block, the next three are on their way from memory.
    for start in tl.range(0, count, BLOCK, num_stages=4):
        offsets = _offsets(start, BLOCK, VECTORS)
        stored = _load(weights, offsets, count, VECTORS)
        new = stored.to(tl.float32)
        old = _load(snapshots, offsets, count, VECTORS).to(tl.float32)
        difference = tl.abs(new - old)
        size = tl.abs(old)
        is_counted = size != 0.0
        change += difference
        norm += size
        ratio += tl.where(is_counted, difference / tl.where(is_counted, size, 1.0), 0.0)
        counted += tl.where(is_counted, 1, 0) + tl.where(tl.abs(new) < float("inf"), 0, 65536)
        if VECTORS:
            tl.store(tl.multiple_of(snapshots + offsets, 16), stored)
        else:
            tl.store(snapshots + offsets, stored, mask=offsets < count)
    return change, norm, ratio, counted


@triton.jit
def measure_chunks(table, sums, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """The statistics of each chunk into `sums` (float64 [5, chunks], rows as in `Statistic`); it becomes its snapshot.

    A chunk has at most 65535 elements.
    """
    weights, snapshots, count, _ = _row(table, ELEMENT)
    if _can_be_vectors(table, BLOCK):
        change, norm, ratio, counted = _sums_of_chunk(weights, snapshots, count, BLOCK, True)
    else:
        change, norm, ratio, counted = _sums_of_chunk(weights, snapshots, count, BLOCK, False)
    # Unsigned: 32768 in the upper bits would be the sign.
    counted = tl.sum(counted.to(tl.uint32))
    chunks = tl.num_programs(0).to(tl.int64)
    target = sums + tl.program_id(0)
    # In float64 from here on, so the order in which Triton sums within a program does not matter to the precision.
    tl.store(target, tl.sum(change.to(tl.float64)))
    tl.store(target + chunks, tl.sum(norm.to(tl.float64)))
    tl.store(target + 2 * chunks, tl.sum(ratio.to(tl.float64)))
    tl.store(target + 3 * chunks, (counted & 65535).to(tl.float64))
    tl.store(target + 4 * chunks, (counted >> 16).to(tl.float64))


@triton.jit(do_not_specialize=["statistics"])
def sum_layers(sums, firsts, statistics, BLOCK: tl.constexpr):
    """Sum the chunks of a layer into `statistics` (float64 [L, S]), from `sums` (float64 [S, chunks]); grid (L, S)."""
    layer, statistic = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = sums + statistic * tl.load(firsts + tl.num_programs(0))
    stop = tl.load(firsts + layer + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(tl.load(firsts + layer), stop, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(row + offsets, mask=offsets < stop, other=0.0)
    tl.store(statistics + layer * tl.num_programs(1) + statistic, tl.sum(total))


@triton.jit
def _finite(values, offsets, count, VECTORS: tl.constexpr):
    if VECTORS:
        return tl.abs(values) < float("inf")
    return (tl.abs(values) < float("inf")) & (offsets < count)


@triton.jit
def _limits_of_chunk(weights, snapshots, count, BLOCK: tl.constexpr, VECTORS: tl.constexpr):
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.full([BLOCK], float("-inf"), tl.float32)
    update_low = low
    update_high = high
    for start in range(0, count, BLOCK):
        offsets = _offsets(start, BLOCK, VECTORS)
        new = _load(weights, offsets, count, VECTORS).to(tl.float32)
        update = new - _load(snapshots, offsets, count, VECTORS).to(tl.float32)
        is_finite = _finite(new, offsets, count, VECTORS)
        low = tl.minimum(low, tl.where(is_finite, new, float("inf")))
        high = tl.maximum(high, tl.where(is_finite, new, float("-inf")))
        is_finite = _finite(update, offsets, count, VECTORS)
        update_low = tl.minimum(update_low, tl.where(is_finite, update, float("inf")))
        update_high = tl.maximum(update_high, tl.where(is_finite, update, float("-inf")))
    return low, high, update_low, update_high


@triton.jit
def limit_chunks(table, limits, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """The least and largest finite weight and update of each chunk into `limits`: float32 [4, chunks]."""
    weights, snapshots, count, _ = _row(table, ELEMENT)
    if _can_be_vectors(table, BLOCK):
        low, high, update_low, update_high = _limits_of_chunk(weights, snapshots, count, BLOCK, True)
    else:
        low, high, update_low, update_high = _limits_of_chunk(weights, snapshots, count, BLOCK, False)
    chunks = tl.num_programs(0).to(tl.int64)
    target = limits + tl.program_id(0)
    tl.store(target, tl.min(low, 0))
    tl.store(target + chunks, tl.max(high, 0))
    tl.store(target + 2 * chunks, tl.min(update_low, 0))
    tl.store(target + 3 * chunks, tl.max(update_high, 0))


@triton.jit
def limit_layers(limits, firsts, ranges, BLOCK: tl.constexpr):
    """The range of a layer's values and updates into `ranges` (float32 [2, L, 2]), 0 if none is finite; grid (L, 2)."""
    layer, kind = tl.program_id(0).to(tl.int64), tl.program_id(1)
    layers = tl.num_programs(0).to(tl.int64)
    chunks = tl.load(firsts + layers)
    stop = tl.load(firsts + layer + 1)
    lows = tl.full([BLOCK], float("inf"), tl.float32)
    highs = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(tl.load(firsts + layer), stop, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        row = limits + 2 * kind * chunks + offsets
        lows = tl.minimum(lows, tl.load(row, mask=offsets < stop, other=float("inf")))
        highs = tl.maximum(highs, tl.load(row + chunks, mask=offsets < stop, other=float("-inf")))
    low, high = tl.min(lows, 0), tl.max(highs, 0)
    target = ranges + 2 * (kind * layers + layer)
    tl.store(target, tl.where(low <= high, low, 0.0))
    tl.store(target + 1, tl.where(low <= high, high, 0.0))


@triton.jit
def _bins_of(values, is_finite, low, high, is_part, BINS: tl.constexpr):
    """The bin of each value, by the rule of `reference._count`; 0 for what is not finite."""
    zero = tl.where(is_part != 0, 0.0, low)
    width = tl.where(high > low, high - low, 1.0)
    # Triton 3.2 treats denormal numbers as zeros when it divides: scale by a power of two, which rounds nothing.
    scale = tl.where(width < 2.0**-60, 2.0**64, 1.0)
    above = (tl.where(is_finite, values, low) - zero) * scale
    bins = tl.div_rn(above, tl.zeros_like(above) + width * scale) * BINS
    first = tl.div_rn((low - zero) * scale, width * scale) * BINS
    return tl.minimum(tl.maximum((tl.floor(bins) - first).to(tl.int32), 0), BINS - 1)


@triton.jit
def _add_counts(counted, left_out, counts, BINS: tl.constexpr, SLOTS: tl.constexpr):
    # Values that are left out were counted in the first bin, because a masked histogram needs Triton 3.3.
    slots = tl.arange(0, SLOTS)
    counted = (counted - tl.where(slots == 0, left_out, 0)).to(tl.int64)
    tl.atomic_add(counts + slots, counted, mask=(slots < BINS) & (counted != 0), sem="relaxed")


@triton.jit
def _count_chunk(
    weights,
    snapshots,
    count,
    range_0,
    range_1,
    counts_0,
    counts_1,
    is_part,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTORS: tl.constexpr,
):
    low, high = tl.load(range_0), tl.load(range_0 + 1)
    update_low, update_high = tl.load(range_1), tl.load(range_1 + 1)
    counted = tl.zeros([SLOTS], tl.int32)
    update_counted = tl.zeros([SLOTS], tl.int32)
    # Left-out weights in the lower 16 bits, left-out updates in the upper.
    left_out = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        offsets = _offsets(start, BLOCK, VECTORS)
        new = _load(weights, offsets, count, VECTORS).to(tl.float32)
        update = new - _load(snapshots, offsets, count, VECTORS).to(tl.float32)
        is_finite = _finite(new, offsets, count, VECTORS)
        update_is_finite = _finite(update, offsets, count, VECTORS)
        counted += tl.histogram(_bins_of(new, is_finite, low, high, is_part, BINS), SLOTS)
        update_bins = _bins_of(update, update_is_finite, update_low, update_high, is_part, BINS)
        update_counted += tl.histogram(update_bins, SLOTS)
        left_out += tl.where(is_finite, 0, 1) + tl.where(update_is_finite, 0, 65536)
    left_out = tl.sum(left_out.to(tl.uint32))
    _add_counts(counted, (left_out & 65535).to(tl.int32), counts_0, BINS, SLOTS)
    _add_counts(update_counted, (left_out >> 16).to(tl.int32), counts_1, BINS, SLOTS)


@triton.jit(do_not_specialize=["is_part"])
def count_chunks(
    table,
    ranges,
    counts,
    layers,
    is_part,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add each chunk to `counts` (int64 [2, L, BINS]), in bins over `ranges`; SLOTS is a power of two >= BINS."""
    weights, snapshots, count, layer = _row(table, ELEMENT)
    range_0, range_1 = ranges + 2 * layer, ranges + 2 * (layers + layer)
    counts_0, counts_1 = counts + BINS * layer, counts + BINS * (layers + layer)
    if _can_be_vectors(table, BLOCK):
        _count_chunk(weights, snapshots, count, range_0, range_1, counts_0, counts_1, is_part, BINS, SLOTS, BLOCK, True)
    else:
        _count_chunk(
            weights, snapshots, count, range_0, range_1, counts_0, counts_1, is_part, BINS, SLOTS, BLOCK, False
        )
