"""Train parts of a frozen SAM: Stable-SAM, HQ-SAM and the methods that they are compared with.

The image encoder needs no gradients: an image is encoded once for all of its prompts.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from samrobust.errors import TrainingError
from samrobust.seeding import keyed_generator
from samrobust.segmenters.adapters import (
    DECODER,
    LORA,
    TOKENS,
    adapted_info,
    build_base,
    tuned_header,
    tuned_part,
)
from samrobust.segmenters.hq_modules import parts_like_sam
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.nano import NAME as NANO
from samrobust.segmenters.sam import Sam, SamEmbedding
from samrobust.segmenters.sam_decoder import FastDecoder
from samrobust.segmenters.stable_plugins import Plugins
from samrobust.segmenters.stable_sam import StableSam
from samrobust.training.checkpoints import save_weights
from samrobust.training.examples import Example
from samrobust.training.losses import example_losses
from samrobust.training.models import TraineeOptions
from samrobust.training.recipe import Phase, Recipe
from samrobust.types import SegmenterOptions

MASK_SHARE = 4
"""Side of the logits in sides of the embedding."""


class TunedTrainee:
    """See `samrobust.training.models.Trainee`.

    Args:
        recipe: losses and seeds.
        base: SAM whose encoder is used; frozen except for `learned`.
        segmenter: the base, or a segmenter made from it; untrained, it answers as the base does.
        learned: the module that is trained.
        header: metadata of the weights file.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: Sam,
        segmenter: Sam | StableSam | HqSam,
        learned: nn.Module,
        header: Mapping[str, str],
    ) -> None:
        self._recipe = recipe
        self._base = base
        self._model = base.model
        self._segmenter = segmenter
        self._teacher: FastDecoder | None = None
        if recipe.loss.distilled:
            encoder = base.model.image_encoder
            self._teacher = FastDecoder(deepcopy(base.model, {id(encoder): encoder}))
        self._learned = learned.requires_grad_(True)
        self._header = header

    @property
    def learned(self) -> nn.Module:
        """Return the module that is trained."""
        return self._learned

    def rate_of(self, parameter: str) -> float:  # noqa: ARG002
        """Return 1: all parameters have the same learning rate."""
        return 1.0

    @property
    def side(self) -> int:
        """Return the side of the base's input in pixels."""
        return self._model.image_encoder.img_size

    @property
    def stride(self) -> int:
        """Return the pixels of the base's input per position of its logits."""
        grid, _ = self._model.prompt_encoder.image_embedding_size
        return self.side // (MASK_SHARE * grid)

    @property
    def start(self) -> str:
        """Return name, variant and hash of the base."""
        return " ".join(self._header[f"base-{name}"] for name in ("name", "variant", "sha256"))

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return the mean losses of the prompts.

        Raises:
            TrainingError: the phase has another side than the base, or no images.
        """
        if phase.side not in (0, self.side) or phase.source != "data":
            raise TrainingError(
                f"phase '{phase.name}': a SAM must be tuned on images of its own side, {self.side}"
            )
        squares = [self._model.preprocess(one.image.to(self._model.device)) for one in examples]
        sizes = [(one.size_hw, one.input_size_hw) for one in examples]
        embeddings = self._segmenter.embed(torch.stack(squares), sizes)
        if self._teacher is not None:
            examples = [
                self._distilled(example, embedding, self._teacher)
                for example, embedding in zip(examples, embeddings, strict=True)
            ]
        read = self._mixed(examples, embeddings) if self._recipe.augmentation.mix else embeddings
        return example_losses(self._segmenter, zip(examples, read, strict=True), self._recipe)

    def _mixed(
        self, examples: Sequence[Example], embeddings: Sequence[SamEmbedding]
    ) -> list[SamEmbedding]:
        """Return the embeddings with a share of the next image's in each; finer features stay."""
        channels = self._model.mask_decoder.transformer_dim
        mixed = []
        others = [*embeddings[1:], embeddings[0]]
        for example, own, other in zip(examples, embeddings, others, strict=True):
            rng = keyed_generator("mix", self._recipe.seed, *example.key)
            share = rng.uniform(0, self._recipe.augmentation.mix)
            coarse, finer = own.features.tensor_split([channels], dim=1)
            coarse = coarse.lerp(other.features[:, :channels], share)
            mixed.append(replace(own, features=torch.cat([coarse, finer], dim=1)))
        return mixed

    @torch.no_grad()
    def _distilled(
        self, example: Example, embedding: SamEmbedding, teacher: FastDecoder
    ) -> Example:
        """Return an example whose targets are in part the base's answers to the exact boxes."""
        tokens = self._base.embed_prompts(embedding, example.exact)
        with torch.autocast(self._model.device.type, enabled=False):
            logits, _ = teacher(embedding.features, tokens)
        answers = logits[:, 0].sigmoid().to(example.targets)
        share = self._recipe.loss.distilled
        return replace(example, targets=example.targets.lerp(answers, share))

    def segmenter(self) -> Sam | StableSam | HqSam:
        """Return the segmenter that is trained."""
        return self._segmenter

    def save(self, path: Path) -> None:
        """Write the trained parameters in float32, with the header."""
        state = self._learned.state_dict()
        save_weights(path, state, self._recipe, dtype=torch.float32, about=self._header)


def stable_sam(recipe: Recipe, options: TraineeOptions) -> TunedTrainee:
    """Return Stable-SAM with untrained plugins; only these are trained."""
    base = _open(recipe, options)
    torch.manual_seed(recipe.seed)
    channels = base.model.mask_decoder.transformer_dim
    stable = StableSam(base, Plugins(channels, recipe.plugins))
    return TunedTrainee(recipe, base, stable, stable.plugins, stable.header)


def hq_sam(recipe: Recipe, options: TraineeOptions) -> TunedTrainee:
    """Return HQ-SAM initialised to SAM's mask; only its parts are trained, on the HQ token's mask.

    Raises:
        TrainingError: the recipe trains candidates or qualities, which HQ-SAM does not have.
    """
    if recipe.loss.candidate or recipe.loss.quality:
        raise TrainingError(
            f"recipe '{recipe.name}': candidate and quality must be 0 for hq-sam, which has one "
            "mask and no quality of its own"
        )
    base = _open(recipe, options)
    torch.manual_seed(recipe.seed)
    hq = HqSam(base, parts_like_sam(base.model), output="hq")
    return TunedTrainee(recipe, base, hq, hq.parts, hq.header)


def tuned(recipe: Recipe, options: TraineeOptions, *, part: str) -> TunedTrainee:
    """Return a SAM of which one part is trained: its mask decoder, mask tokens, or updates."""
    base = _open(recipe, options)
    header = tuned_header(base, part)
    torch.manual_seed(recipe.seed)
    base.info = adapted_info(base, part)
    return TunedTrainee(recipe, base, base, tuned_part(base, part), header)


decoder_tuned = partial(tuned, part=DECODER)
token_tuned = partial(tuned, part=TOKENS)
lora_tuned = partial(tuned, part=LORA)


def _open(recipe: Recipe, options: TraineeOptions) -> Sam:
    base = build_base(
        options.base or NANO,
        SegmenterOptions(options.variant, options.checkpoint, options.device, options.dtype),
    )
    if recipe.weight_decay:
        raise TrainingError(
            f"recipe '{recipe.name}': weight_decay must be 0 for a part of a trained model, as it "
            f"would shrink trained weights, got {recipe.weight_decay}"
        )
    return base
