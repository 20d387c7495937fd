"""Training SAM-nano: encoder, prompt encoder and decoder together."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from samrobust.errors import TrainingError
from samrobust.seeding import keyed_generator
from samrobust.segmenters.checkpoints import file_sha256, fill_model, load_tensors
from samrobust.segmenters.nano import (
    CHANNELS,
    MASK_STRIDE,
    NAME,
    SIDE,
    STRIDE,
    nano_model,
    set_side,
)
from samrobust.segmenters.sam import Sam, SamEmbedding, SamOptions
from samrobust.training.answers import answer_losses, embeddings_of
from samrobust.training.examples import Example
from samrobust.training.imagenet import start_from_imagenet
from samrobust.training.recipe import Phase, Recipe
from samrobust.training.trainee import TraineeOptions
from samrobust.training.weights import save_weights

TRUNK = ("image_encoder.stem.", "image_encoder.stages.")
"""Where the names of the trunk's parameters begin."""
NOISE = 0.5
"""Standard deviation of what stands for an embedding where there is no image."""


class NanoTrainee:
    """See `samrobust.training.trainee.Trainee`.

    Args:
        recipe: its seed makes the first weights, but for a trunk that was trained before.
        options: device, and dtype of the encoder, under autocast; prompts and decoder are float32,
            as in `Sam`. With a checkpoint, a file that training wrote, it goes on from there
            instead. A base is refused.

    Raises:
        TrainingError: it is given a base, or a trunk's weights are not there.
        CheckpointError: the checkpoint is not SAM-nano's.
    """

    side = SIDE
    stride = MASK_STRIDE

    def __init__(self, recipe: Recipe, options: TraineeOptions) -> None:
        if options.base or options.variant:
            raise TrainingError(f"{NAME} is trained whole: --base and --variant are not for it")
        torch.manual_seed(recipe.seed)
        self._recipe = recipe
        self._model = nano_model()
        self.start = ""
        if options.checkpoint:
            path = options.checkpoint
            fill_model(self._model, load_tensors(path), path=path)
            self.start = f"{NAME} {file_sha256(path)}"
        elif recipe.trunk.start == "imagenet":
            start_from_imagenet(self._model)
        self._model.to(options.device)
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._sam = self._at(SIDE)

    @property
    def learned(self) -> nn.Module:
        """Return the whole model."""
        return self._model

    def rate_of(self, parameter: str) -> float:
        """Return the recipe's factor for the encoder's trunk, 1 for all else."""
        return self._recipe.trunk.rate if parameter.startswith(TRUNK) else 1.0

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return the mean losses of the prompts, over two rounds where they are corrected."""
        side = phase.side or self.side
        if side != self._model.image_encoder.img_size:
            self._sam = self._at(side)
        embeddings = self._embed(examples, phase)
        return answer_losses(self._sam, zip(examples, embeddings, strict=True), self._recipe)

    def segmenter(self) -> Sam:
        """Return a copy at the model's own side."""
        model = copy.deepcopy(self._model)
        set_side(model, SIDE)
        return Sam(model, SamOptions(attention="stock"), name=NAME)

    def save(self, path: Path) -> None:
        """Write all weights in float16."""
        about = {"start": self.start} if self.start else {}
        save_weights(path, self._model.state_dict(), self._recipe, about=about)

    def _at(self, side: int) -> Sam:
        """Return the model behind the face of a segmenter, for its decoder; it goes on learning."""
        set_side(self._model, side)
        sam = Sam(self._model, SamOptions(attention="stock"), name=NAME)
        self._model.requires_grad_(True)
        self._model.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask prompts
        return sam

    def _embed(self, examples: Sequence[Example], phase: Phase) -> list[SamEmbedding]:
        device = self._model.device
        if phase.source == "data":
            images = [self._model.preprocess(example.image.to(device)) for example in examples]
            with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
                features = self._model.image_encoder(torch.stack(images)).float()
        else:
            features = torch.cat([self._noise(example) for example in examples]).to(device)
        return embeddings_of(features, examples)

    def _noise(self, example: Example) -> Tensor:
        """Return (1, C, h, w): what a decoder sees where there is no image."""
        rng = keyed_generator("noise", self._recipe.seed, *example.key)
        grid_hw = (extent // STRIDE for extent in example.input_size_hw)
        return torch.from_numpy(NOISE * rng.standard_normal((1, CHANNELS, *grid_hw), np.float32))
