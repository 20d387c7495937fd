"""Random generators seeded from keys: every segmenter gets the same prompts, in any order."""

import hashlib
from collections.abc import Sequence

import numpy as np

from samrobust.types import Prompt

KEY_VERSION = "samrobust-prompts-1"


def keyed_generator(*key: str | int) -> np.random.Generator:
    """Return a generator that depends only on the parts of `key`.

    The key is hashed (SHA-256), so similar keys give unrelated streams. Another way of hashing
    changes every prompt and needs a new `KEY_VERSION`.

    Args:
        key: for prompts (seed, data set, sample, instance, degradation family, trial).
    """
    text = "\x1f".join([KEY_VERSION, *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def uniform_indices(rng: np.random.Generator, n: int, count: int) -> list[int]:
    """Return `count` indices below `n`, drawn without replacement until all n are taken.

    Nested: the first k indices are the draw of k from the same generator. If `count` is above n,
    the indices after the first n repeat earlier ones.

    >>> rng = keyed_generator("doc")
    >>> sorted(uniform_indices(rng, 3, 3))
    [0, 1, 2]
    """
    chosen: list[int] = []
    taken: set[int] = set()
    while len(chosen) < count:
        index = int(rng.random() * n)
        if index in taken and len(taken) < n:
            continue
        taken.add(index)
        chosen.append(index)
    return chosen


def prompt_hash(prompt: Prompt) -> str:
    """Return a hash of a prompt, 16 hex digits; equal only for bitwise equal prompts."""
    box = b"" if prompt.box is None else prompt.box.astype("<f4").tobytes()
    points = prompt.points.astype("<f4").tobytes() + prompt.labels.astype("<i4").tobytes()
    logits = b"" if prompt.logits is None else b"mask" + prompt.logits.astype("<f4").tobytes()
    return hashlib.sha256(b"box" + box + b"points" + points + logits).hexdigest()[:16]


def combined_hash(hashes: Sequence[str]) -> str:
    """Return the hash of several prompt hashes in order, 16 hex digits."""
    return hashlib.sha256("\x1f".join(hashes).encode()).hexdigest()[:16]
