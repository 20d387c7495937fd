"""Pack, count and erode masks on a GPU, by a kernel or two each; `bits` says what is computed.

An image is scored in hundreds of small calls, each of which would wait for hundreds of launches of
torch's operations, and the GPU with it. Triton launches on the current device, whatever the
tensors are on, so each function makes theirs the current one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, PACKED = 1024, 64
"""Words that a program works on; one that packs reads 64 times as many bytes."""
_PAIRS = tl.constexpr(0x5555555555555555)
_NIBBLES = tl.constexpr(0x3333333333333333)
_BYTES = tl.constexpr(0x0F0F0F0F0F0F0F0F)
_ADD_BYTES = tl.constexpr(0x0101010101010101)


def pack(masks: Tensor, n: int) -> Tensor:
    """Return (T, H, n) int64 words of (T, H, W) bool masks; n words have room for W bits."""
    trials, height, width = masks.shape
    if masks.stride()[1:] != (width, 1):
        masks = masks.contiguous()
    words = torch.empty(trials, height, n, dtype=torch.int64, device=masks.device)
    if words.numel():
        grid = trials, triton.cdiv(height * n, PACKED)
        stride = masks.stride(0)
        with torch.cuda.device_of(masks):  # type: ignore[no-untyped-call]
            _pack[grid](masks.view(torch.uint8), words, stride, height * n, n, width, PACKED)
    return words


def overlap(words: Tensor, others: Tensor) -> Tensor:
    """Return (2, T) int64, the number of bits in both and in either.

    Args:
        words: (T, H, n) int64.
        others: of the same shape, or (1, H, n), which is compared with all.
    """
    counts = torch.zeros(2, len(words), dtype=torch.int64, device=words.device)
    if words.numel():
        size = words[0].numel()
        grid = len(words), triton.cdiv(size, BLOCK)
        stride = 0 if len(others) == 1 else size
        with torch.cuda.device_of(words):  # type: ignore[no-untyped-call]
            _overlap[grid](words.contiguous(), others.contiguous(), counts, size, stride, BLOCK)
    return counts


def erode(words: Tensor, reach: int) -> Tensor:
    """Return (T, H, n) int64 words eroded `reach` times by a 3x3 square; no bit is set outside."""
    words = words.contiguous()
    along_rows, eroded = torch.empty_like(words), torch.empty_like(words)
    if words.numel():
        trials, height, n = words.shape
        grid = trials, triton.cdiv(height * n, BLOCK)
        with torch.cuda.device_of(words):  # type: ignore[no-untyped-call]
            _erode_rows[grid](words, along_rows, height * n, n, reach, BLOCK)
            _erode_columns[grid](along_rows, eroded, height * n, n, reach, BLOCK)
    return eroded


@triton.jit
def _pack(pixels, words, stride, size, n, width, block: tl.constexpr):
    mask, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    bit = tl.arange(0, 64)
    x = (place % n * 64)[:, None] + bit
    inside = (place < size)[:, None] & (x < width)
    set_bits = tl.load(pixels + mask * stride + (place // n * width)[:, None] + x, inside, 0)
    packed = tl.sum(set_bits.to(tl.int64) << bit, 1)
    tl.store(words + mask * size + place, packed, place < size)


@triton.jit
def _overlap(words, others, counts, size, stride, block: tl.constexpr):
    mask, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    x = tl.load(words + mask * size + place, place < size, 0)
    y = tl.load(others + mask * stride + place, place < size, 0)
    tl.atomic_add(counts + mask, tl.sum(_count(x & y), 0))
    tl.atomic_add(counts + tl.num_programs(0) + mask, tl.sum(_count(x | y), 0))


@triton.jit
def _count(x):
    """Return the number of set bits of words: sums of neighbouring 1, 2, 4 and 8 bits."""
    x = x - ((x >> 1) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> 2) & _NIBBLES)
    x = (x + (x >> 4)) & _BYTES
    return ((x * _ADD_BYTES) >> 56) & 0xFF


@triton.jit
def _erode_rows(words, eroded, size, n, reach, block: tl.constexpr):
    mask, place = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    start = mask.to(tl.int64) * size
    inside, column = place < size, place % n
    kept = _load(words + start, place, inside)
    for step in range(1, reach + 1):
        whole, part = step // 64, step % 64
        # bits that stand `step` later; `<<` in two steps, as one by a whole word is undefined
        near = _load(words + start, place + whole, inside & (column + whole < n))
        far = _load(words + start, place + whole + 1, inside & (column + whole + 1 < n))
        kept &= (near >> part) | ((far << (63 - part)) << 1)
        # and `step` earlier
        near = _load(words + start, place - whole, inside & (column >= whole))
        far = _load(words + start, place - whole - 1, inside & (column > whole))
        kept &= (near << part) | ((far >> (63 - part)) >> 1)
    tl.store(eroded + start + place, kept.to(tl.int64, bitcast=True), inside)


@triton.jit
def _erode_columns(words, eroded, size, n, reach, block: tl.constexpr):
    mask, place = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    start = mask.to(tl.int64) * size
    inside = place < size
    kept = _load(words + start, place, inside)
    for step in range(1, reach + 1):
        later, earlier = place + step * n, place - step * n
        kept &= _load(words + start, later, inside & (later < size))
        kept &= _load(words + start, earlier, inside & (earlier >= 0))
    tl.store(eroded + start + place, kept.to(tl.int64, bitcast=True), inside)


@triton.jit
def _load(words, place, inside):
    """Return unsigned words, so that shifts bring zeros; 0 outside."""
    return tl.load(words + place, inside, 0).to(tl.uint64, bitcast=True)
