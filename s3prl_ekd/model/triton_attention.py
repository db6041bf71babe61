"""Attention with WavLM's gated relative bias as one kernel: forward only. What it replaces, and when: ``attention.py``.

Shapes: B clips, T frames, H heads, d numbers a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s3prl_ekd.kernels import FUSED


def gated_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, by_distance: Tensor,
    *, rows: int = 128, columns: int = 64,
) -> Tensor:  # fmt: skip
    """``softmax(query key' / sqrt(d) + gate[b, h, q] * by_distance[h, T - 1 + k - q]) value``.

    No matrix of (T, T) is written: a tile of scores reads as many biases as it has distances. Scores are fp32.

    Args:
        query, key, value: (B, H, T, d) of one dtype, d innermost; views of one projection will do.
        gate: (B, H, T), any strides.
        by_distance: (H, 2T - 1).
        rows, columns: queries and keys of a tile, powers of two, at least 16.

    Returns:
        (B, T, H d), contiguous.
    """
    batch, heads, frames, width = query.shape
    assert query.stride(3) == key.stride(3) == value.stride(3) == 1
    padded = max(16, triton.next_power_of_2(width))
    if padded * query.element_size() > 256:  # tiles share a multiprocessor's memory
        rows, columns = min(rows, 64), min(columns, 32)
    by_distance = by_distance.contiguous()
    out = torch.empty(batch, frames, heads * width, dtype=query.dtype, device=query.device)
    with torch.cuda.device_of(query):
        _gated_attention[(triton.cdiv(frames, rows), heads, batch)](
            query, key, value, gate, by_distance, out,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *gate.stride(),
            frames, heads, width**0.5, WIDTH=width, PADDED=padded, ROWS=rows, COLUMNS=columns,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32", num_warps=8, num_stages=3,
            **FUSED,
        )  # fmt: skip
    return out


# these change with the length of clips, and a kernel of its own for each multiple of 16 would be no faster
@triton.jit(do_not_specialize=["gate_clip", "gate_head", "gate_frame", "frames"])
def _gated_attention(
    QUERY, KEY, VALUE, GATE, BY_DISTANCE, OUT,
    query_clip, query_head, query_frame, key_clip, key_head, key_frame, value_clip, value_head, value_frame,
    gate_clip, gate_head, gate_frame, frames, heads, root,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries against all keys. Scores are kept times sqrt(d): the product as it comes, the gate scaled."""
    clip, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    dim = tl.arange(0, PADDED)
    inside = (row < frames)[:, None] & (dim < WIDTH)[None, :]
    query = tl.load(
        QUERY + clip * query_clip + head * query_head + row[:, None] * query_frame + dim[None, :],
        mask=inside,
        other=0.0,
    )
    gate = tl.load(GATE + clip * gate_clip + head * gate_head + row * gate_frame, mask=row < frames, other=0.0)
    gate = gate.to(tl.float32) * root
    keys = KEY + clip * key_clip + head * key_head + column[None, :] * key_frame + dim[:, None]  # (d, COLUMNS)
    values = VALUE + clip * value_clip + head * value_head + column[:, None] * value_frame + dim[None, :]
    biases = BY_DISTANCE + head * (2 * frames - 1)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED], tl.float32)
    span = _span(biases, -first, frames, ROWS, COLUMNS)
    last = (frames - 1) // COLUMNS * COLUMNS  # only the last tile of keys is masked
    for start in range(0, last, COLUMNS):
        following = _span(biases, start + COLUMNS - first, frames, ROWS, COLUMNS)  # one tile ahead of its use
        highest, total, sums = _attend(
            query, gate, keys, values, span, highest, total, sums, start, key_frame, value_frame, frames, root,
            WIDTH, PADDED, ROWS, COLUMNS, PRECISION, False,
        )  # fmt: skip
        span = following
    highest, total, sums = _attend(
        query, gate, keys, values, span, highest, total, sums, last, key_frame, value_frame, frames, root,
        WIDTH, PADDED, ROWS, COLUMNS, PRECISION, True,
    )  # fmt: skip
    place = (clip * frames + row)[:, None] * (heads * WIDTH) + head * WIDTH + dim[None, :]
    tl.store(OUT + place, sums / total[:, None], mask=inside)


@triton.jit
def _attend(
    query, gate, keys, values, span, highest, total, sums, start, key_frame, value_frame, frames, root,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum of weights and weighted sum of values, with the keys from ``start`` on taken in."""
    dim = tl.arange(0, PADDED)
    held = start + tl.arange(0, COLUMNS) < frames
    key_at, value_at = keys + start * key_frame, values + start * value_frame
    if LAST:
        key = tl.load(key_at, mask=held[None, :] & (dim < WIDTH)[:, None], other=0.0)
    elif WIDTH < PADDED:
        key = tl.load(key_at, mask=(dim < WIDTH)[:, None], other=0.0)
    else:
        key = tl.load(key_at)
    scores = tl.dot(query, key, input_precision=PRECISION)
    scores += gate[:, None] * _biases(span, ROWS, COLUMNS)
    if LAST:
        scores = tl.where(held[None, :], scores, float("-inf"))
    scale = 1.4426950408889634 / root  # of scores, to powers of two
    higher = tl.maximum(highest, tl.max(scores, 1))
    weight = tl.exp2(scores * scale - (higher * scale)[:, None])
    shrink = tl.exp2((highest - higher) * scale)
    total = total * shrink + tl.sum(weight, 1)
    if LAST:
        value = tl.load(value_at, mask=held[:, None] & (dim < WIDTH)[None, :], other=0.0)
    elif WIDTH < PADDED:
        value = tl.load(value_at, mask=(dim < WIDTH)[None, :], other=0.0)
    else:
        value = tl.load(value_at)
    sums = tl.dot(weight.to(value.dtype), value, sums * shrink[:, None], input_precision=PRECISION)
    return higher, total, sums


@triton.jit
def _span(biases, shift, frames, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """All biases of a tile, and some more: of the distances from ``shift - ROWS`` on, zero where there is no such."""
    place = frames - 1 + shift - ROWS + tl.arange(0, 2 * max(ROWS, COLUMNS))
    return tl.load(biases + place, mask=(place >= 0) & (place < 2 * frames - 1), other=0.0).to(tl.float32)


@triton.jit
def _biases(span, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS): the bias of each pair's distance.

    Flat, because a gather takes the layout that its result is used in, the scores' one. A load of (ROWS, COLUMNS) would
    have a layout of its own, and each tile would pass through shared memory to change it.
    """
    cell = tl.arange(0, ROWS * COLUMNS)
    return tl.reshape(tl.gather(span, ROWS + cell % COLUMNS - cell // COLUMNS, 0), (ROWS, COLUMNS))
