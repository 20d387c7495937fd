"""What a model learns from an image: the losses of its answers to one kind of prompt after another.

An image is encoded once, whatever it is asked.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from samrobust.seeding import keyed_generator
from samrobust.segmenters.decoder import ALL_MASKS, SINGLE
from samrobust.segmenters.sam import SamEmbedding
from samrobust.training.corrections import is_corrected, with_corrections
from samrobust.training.examples import Example
from samrobust.training.losses import prompt_losses
from samrobust.training.recipe import Recipe
from samrobust.types import PromptBatch


class Decodes(Protocol):
    """A segmenter that says more than masks, as `samrobust.segmenters.sam.Sam` does."""

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and quality (N, M) of M of the decoder's four masks."""
        ...


def embeddings_of(features: Tensor, examples: Sequence[Example]) -> list[SamEmbedding]:
    """Return the embedding of each of B examples from features (B, C, h, w)."""
    return [
        SamEmbedding(features[row : row + 1], example.size_hw, example.input_size_hw)
        for row, example in enumerate(examples)
    ]


def answer_losses(
    segmenter: Decodes, asked: Iterable[tuple[Example, SamEmbedding]], recipe: Recipe
) -> dict[str, Tensor]:
    """Return the mean losses of all prompts, over two rounds where they are corrected.

    Args:
        segmenter: what learns, or holds what learns.
        asked: examples of one step, with the embedding of each.
        recipe: losses, corrections and the seed of their draws.
    """
    more = recipe.loss.candidate or recipe.loss.quality
    wanted = ALL_MASKS if more else SINGLE
    found: dict[str, list[Tensor]] = defaultdict(list)
    for example, embedding in asked:
        targets = example.targets.to(embedding.features.device)
        points_rng = keyed_generator("points", recipe.seed, *example.key)
        correct_rng = keyed_generator("correct", recipe.seed, *example.key)
        rounds = 2 if is_corrected(recipe, example.key[0]) else 1
        for first in example.prompts:
            prompts = first
            for round_ in range(rounds):
                logits, quality = segmenter.logits(embedding, prompts, masks=wanted)
                losses = prompt_losses(logits, quality, targets, recipe.loss, points_rng)
                for name, loss in losses.items():
                    found[name].append(loss.mean())
                if round_ + 1 < rounds:
                    answer = logits[:, 0].detach()
                    prompts = with_corrections(example, prompts, answer, correct_rng)
    return {name: torch.stack(losses).mean() for name, losses in found.items()}
