"""Pack masks as bits, 64 pixels per word, and count and erode whole words.

On a CPU the words are NumPy arrays, because NumPy counts bits and needs no threads; on other
devices they are torch tensors, and on a GPU with Triton its kernels do the work. Erosion uses only
operators that NumPy and torch both have.
"""

from collections.abc import Callable
from functools import cache
from subprocess import CalledProcessError
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Words = Any
"""int64: a NumPy array on a CPU, a torch tensor elsewhere; only operators of both are used."""

WORD = 64
_BYTE = 8
# Multiplying eight 0/1 bytes by this gathers them in the topmost byte, first byte lowest.
_GATHER = 0x0102040810204080
_PAIRS, _NIBBLES, _BYTES = 0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F
_ADD_BYTES = 0x0101010101010101


def pack_masks(masks: "Tensor", *, margin: int = 0) -> Words:
    """Return masks as bits: (T, H, n) int64 words, pixel x of a row is bit x % 64 of word x // 64.

    Args:
        masks: (T, H, W) bool.
        margin: minimum number of zero bits after each row; an erosion needs its reach.
    """
    if masks.device.type == "cpu":
        return pack_with_numpy(masks.numpy(), margin)
    if (kernels := _kernels(masks)) is not None:
        return kernels.pack(masks, _words_per_row(masks.shape[-1] + margin))
    return pack_with_torch(masks, margin)


def count_overlap(words: Words, others: Words) -> tuple["Tensor", "Tensor"]:
    """Return (T,) int64 each, the number of bits in both and in either, on the words' device.

    Args:
        words: (T, H, n).
        others: of the same shape, or (1, H, n), which is compared with all.
    """
    if (kernels := _kernels(words)) is not None:
        in_both, in_either = kernels.overlap(words, others)
        return in_both, in_either
    in_both = count_bits(words & others)
    return in_both, count_bits(words) + count_bits(others) - in_both


def count_bits(words: Words) -> "Tensor":
    """Return (T,) int64, the number of set bits in (T, H, n) words, on the device of the words."""
    if not isinstance(words, np.ndarray):
        return count_with_torch(words)

    import torch

    counts = np.bitwise_count(words.view(np.uint64)).sum(axis=(1, 2), dtype=np.int64)
    return torch.from_numpy(counts)


def erode_bits(words: Words, reach: int) -> Words:
    """Return packed masks eroded `reach` times by a 3x3 square.

    Pixels beyond the image count as outside the mask. Runs of k ones are found by ANDing runs of
    half that length: log2(k) steps instead of k.

    Args:
        words: (T, H, n) from `pack_masks` with a margin of at least `reach`.
        reach: in pixels, >= 1.
    """
    if (kernels := _kernels(words)) is not None:
        return kernels.erode(words, reach)
    trials, height, n = words.shape
    eroded = words ^ words
    window = 2 * reach + 1
    if height < window:
        return eroded
    rows = _runs(words, window, lambda x, step: (x[:, :-step], x[:, step:]))
    # rows end in zeros: one long string of bits per mask
    runs = _runs(rows.reshape(trials, -1), window, _with_later)
    whole, part = divmod(reach, WORD)  # a run begins `reach` bits before what is left of it
    first, length = reach * n + whole, runs.shape[1]
    strings = eroded.reshape(trials, -1)
    strings[:, first : first + length] = runs << part
    if part:
        strings[:, first + 1 : first + 1 + length] |= _shifted_right(runs, WORD - part)
    return eroded


def crop_to_bits(masks: Words, target: Words, margin: int) -> tuple[Words, Words]:
    """Return masks and a target without the rows and words at their sides that have no set bit.

    Counts, and erosions of less than the margin, have the same bits. Only NumPy's words are
    cropped: on other devices it would wait for the device.

    Args:
        masks: (T, H, n).
        target: (1, H, n).
        margin: number of zero bits after each row that stay.
    """
    if not isinstance(masks, np.ndarray):
        return masks, target
    occupied = np.bitwise_or.reduce(masks, axis=0) | target[0]
    rows, columns = (np.flatnonzero(occupied.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return masks[:, :0], target[:, :0]
    place = (
        slice(None),
        slice(rows[0], rows[-1] + 1),
        slice(columns[0], columns[-1] + 1 + _words_per_row(margin)),
    )
    return np.ascontiguousarray(masks[place]), np.ascontiguousarray(target[place])


def pack_with_numpy(masks: npt.NDArray[np.bool_], margin: int) -> npt.NDArray[np.int64]:
    """Return `pack_masks` of (T, H, W) bool NumPy masks."""
    trials, height, width = masks.shape
    octets = np.packbits(masks, axis=-1, bitorder="little")
    words = np.zeros((trials, height, _words_per_row(width + margin) * _BYTE), np.uint8)
    words[..., : octets.shape[-1]] = octets
    return words.view(np.int64)


def pack_with_torch(masks: "Tensor", margin: int) -> "Tensor":
    """Return `pack_masks` of a torch tensor on any device."""
    import torch
    from torch.nn import functional

    width = masks.shape[-1]
    padded = _words_per_row(width + margin) * WORD
    pixels = functional.pad(masks.view(torch.uint8), (0, padded - width))
    eight_pixels = pixels.view(torch.int64)  # one byte each
    octets = ((eight_pixels * _GATHER) >> (WORD - _BYTE)).to(torch.uint8)
    return octets.view(torch.int64)


def count_with_torch(words: "Tensor") -> "Tensor":
    """Return `count_bits` of a torch tensor: sums of neighbouring 1, 2, 4 and 8 bits."""
    pairs = words - ((words >> 1) & _PAIRS)
    nibbles = (pairs & _NIBBLES) + ((pairs >> 2) & _NIBBLES)
    octets = (nibbles + (nibbles >> 4)) & _BYTES
    return (((octets * _ADD_BYTES) >> (WORD - _BYTE)) & 0xFF).sum(dim=(1, 2))


def _kernels(values: Words) -> ModuleType | None:
    """Return the kernels for masks or words; None where these are on no GPU, or there are none."""
    on_gpu = not isinstance(values, np.ndarray) and values.device.type == "cuda"
    return _built_kernels() if on_gpu else None


@cache
def _built_kernels() -> ModuleType | None:
    """Return the kernels; None where they cannot be built.

    Torch brings Triton on Linux alone, and Triton wants a C compiler and a GPU that is not too old.
    """
    import torch

    try:
        from samrobust.metrics import kernels

        kernels.pack(torch.zeros(1, 1, 1, dtype=torch.bool, device="cuda"), 1)
    except (ImportError, OSError, RuntimeError, CalledProcessError):
        return None
    return kernels


def _words_per_row(bits: int) -> int:
    return -(-bits // WORD)


def _runs(x: Words, window: int, shifted: Callable[[Words, int], tuple[Words, Words]]) -> Words:
    """Return words in which the bits that begin a run of `window` ones are set."""
    length = 1
    while length < window:
        step = min(length, window - length)
        first, second = shifted(x, step)
        x = first & second
        length += step
    return x


def _with_later(bits: Words, step: int) -> tuple[Words, Words]:
    """Return bit strings (T, n) and what stands `step` bits later, without last words of zeros."""
    whole, part = divmod(step, WORD)
    later = bits[:, whole:]
    if part:
        later = _shifted_right(later, part)
        later[:, :-1] |= bits[:, whole + 1 :] << (WORD - part)
    return bits[:, : later.shape[1]], later


def _shifted_right(words: Words, step: int) -> Words:
    """Return words shifted by 1 to 63 bits, zeros first: a right shift repeats the sign bit."""
    return (words >> step) & ((1 << (WORD - step)) - 1)
