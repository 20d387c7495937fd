"""Generators made from keys, so that every segmenter sees the same prompts in any order."""

import hashlib
from collections.abc import Sequence

import numpy as np

from samrobust.types import Prompt

KEY_VERSION = "samrobust-prompts-1"


def keyed_generator(*key: str | int) -> np.random.Generator:
    """Return a generator that depends on the parts of `key` and on nothing else.

    The key is hashed (SHA-256), not added up, so neighbouring keys give unrelated streams. Changing
    how the key is hashed changes every prompt: it takes a new `KEY_VERSION`.

    Args:
        key: for prompts (seed, data set, sample, instance, degradation family, trial).
    """
    text = "\x1f".join([KEY_VERSION, *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def uniform_indices(rng: np.random.Generator, n: int, count: int) -> list[int]:
    """Return `count` indices below `n`, all different as long as there are any left.

    Nested: the first k of a longer draw are the draw of k from the same generator. The first
    min(n, count) are without replacement; beyond n, indices repeat, so `count` never changes.

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
    """Return 16 hex digits that two prompts share only if they are the same to the last bit."""
    box = b"" if prompt.box is None else prompt.box.astype("<f4").tobytes()
    points = prompt.points.astype("<f4").tobytes() + prompt.labels.astype("<i4").tobytes()
    return hashlib.sha256(b"box" + box + b"points" + points).hexdigest()[:16]


def combined_hash(hashes: Sequence[str]) -> str:
    """Return 16 hex digits for several prompts in their order."""
    return hashlib.sha256("\x1f".join(hashes).encode()).hexdigest()[:16]
