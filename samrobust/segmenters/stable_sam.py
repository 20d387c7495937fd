"""Stable-SAM (Fan et al. 2025): a frozen SAM whose decoder reads deformed and routed features."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.files import convert
from samrobust.segmenters.adapters import (
    adapted_info,
    describe_base,
    open_part,
)
from samrobust.segmenters.frames import input_scale
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.segmenters.sam import BoxGradients, Sam, SamEmbedding, Sizes
from samrobust.segmenters.sam_decoder import SINGLE, Mixture
from samrobust.segmenters.stable_plugins import (
    PluggedAttention,
    Plugin,
    Plugins,
    regular_locations,
)
from samrobust.types import Image, Prediction, PromptBatch, SegmenterOptions

NAME = "stable-sam"
WEIGHTS = Path(__file__).parent / "weights" / "stable-sam.safetensors"
"""Plugins for SAM-nano, trained with `samrobust train stable-sam` (docs/models)."""
KIND = "stable-sam-plugins"
"""What the header of a plugin file says that it is."""
_Inputs = tuple[Tensor, Tensor, Tensor]
"""Of a plugin: keys, values and the output token."""


@dataclass(frozen=True)
class Reading:
    """Where a decoder layer reads the image for N prompts; (h, w) is the embedding grid.

    Attributes:
        regular: (h, w, 2) xy of the grid's positions, in pixels of the original image; those in
            the padding of the square input are outside of it.
        locations: (N, h, w, 2) xy likewise: where the deformed features are sampled instead; the
            mean over groups of channels, where these have their own.
        amplitude: (N, h, w), what they are multiplied by; likewise.
        routing: (N, 2), weights of deformed and regular features; (1, 0) without DRP.
        token: (N, C), the output token that the router sees.
        attention: (N, h, w), the share of each position in what the output token reads, mean over
            heads; sums to 1. A position's features are those at its location, weighted with
            `routing[:, 0]`, and its own, weighted with `routing[:, 1]`.
        attention_before: likewise if the plugin of this layer were not there: SAM's own attention,
            where no earlier layer has a plugin.
    """

    regular: Tensor
    locations: Tensor
    amplitude: Tensor
    routing: Tensor
    token: Tensor
    attention: Tensor
    attention_before: Tensor


class StableSam(BoxGradients):
    """A SAM with plugins in its decoder; see `samrobust.types.Segmenter`.

    SAM's weights are neither copied nor changed, and stay frozen; the plugins can learn. Untrained,
    it is the SAM that it is made of.

    Args:
        base: with its weights. It is taken over: from now on its decoder has the plugins.
        plugins: default: untrained, at the paper's layer. They are moved to the base's device.
        name: as registered.
        checkpoint_sha256: of the plugin file, "" where there is none.

    Raises:
        SegmenterError: the base has no such layer, or has a plugin there.
    """

    embedding_type = SamEmbedding

    def __init__(
        self,
        base: Sam,
        plugins: Plugins | None = None,
        *,
        name: str = NAME,
        checkpoint_sha256: str = "",
    ) -> None:
        plugins = plugins if plugins is not None else Plugins(_channels(base))
        settings = plugins.settings
        self.base = base
        self.plugins = plugins.to(base.model.mask_decoder.iou_token.weight)  # device and dtype
        self._attentions = _attach(base.model, plugins)
        self.info = adapted_info(
            base,
            name,
            checkpoint_sha256,
            settings.described
            | {
                "layers": " ".join(map(str, settings.layers)),
                "routing": "drp" if settings.routing else "none",
            },
        )

    @property
    def header(self) -> dict[str, str]:
        """Return what a plugin file must say for `load_stable_sam`.

        Write one with `samrobust.training.checkpoints.save_weights`, of `plugins.state_dict()`, in
        float32, with this as `about`.
        """
        settings = json.dumps(self.plugins.settings.described, sort_keys=True)
        return {**describe_base(KIND, self.base), "settings": settings}

    @property
    def device(self) -> torch.device:
        """Return the base's."""
        return self.base.device

    @property
    def encoder_key(self) -> str:
        """Return the base's: the plugins change no embedding."""
        return self.base.encoder_key

    def encode(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """Return the embeddings of images: those of the base."""
        return self.base.encode(images)

    def embed(self, squares: Tensor, sizes: Sequence[Sizes]) -> list[SamEmbedding]:
        """Return the embeddings of the encoder's inputs; see `Sam.embed`."""
        return self.base.embed(squares, sizes)

    def predict(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return M = 1 mask a prompt, or 3 with `multimask`; quality is the predicted IoU."""
        return self.base.predict(embedding, prompts, multimask=multimask)

    def predict_at(
        self,
        embedding: SamEmbedding,
        prompts: PromptBatch,
        thresholds: Sequence[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        """Return a prediction per threshold of the logits; see `Sam.predict_at`."""
        return self.base.predict_at(embedding, prompts, thresholds, multimask=multimask)

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and quality (N, M); see `Sam.logits`."""
        return self.base.logits(embedding, prompts, masks=masks)

    def embed_prompts(self, embedding: SamEmbedding, prompts: PromptBatch) -> Tensor:
        """Return the tokens (N, P, C) of prompts: those of the base."""
        return self.base.embed_prompts(embedding, prompts)

    def decode(
        self, embedding: SamEmbedding, tokens: Tensor, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and quality (N, M); see `Sam.decode`."""
        return self.base.decode(embedding, tokens, masks=masks)

    def readings(self, embedding: SamEmbedding, prompts: PromptBatch) -> dict[int, Reading]:
        """Return where each layer with a plugin reads the image, by the layer's number."""
        inputs: dict[int, _Inputs] = {}
        with ExitStack() as hooks:
            for layer, attention in self._attentions.items():
                keep = partial(_keep, inputs, layer)
                hooks.callback(attention.plugin.register_forward_pre_hook(keep).remove)
            self.logits(embedding, prompts)
        side = self.base.model.image_encoder.img_size
        return {
            layer: _reading(self._attentions[layer], seen, embedding, side=side)
            for layer, seen in inputs.items()
        }


def load_stable_sam(base: Sam, path: Path, *, name: str = NAME) -> StableSam:
    """Return a SAM with the plugins of a file, which must have been trained on the very same SAM.

    Args:
        base: taken over, where nothing is raised.
        path: of the plugin file.
        name: as registered.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, base or size.
    """
    file = open_part(path, KIND)
    file.check_base(base)
    try:
        settings = convert(json.loads(file.header["settings"]), PluginSettings, where="plugins")
    except (KeyError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{path.name}: its header cannot be read: {error}") from error
    plugins = Plugins(_channels(base), settings)
    file.fill(plugins)
    stable = StableSam(base, plugins, name=name, checkpoint_sha256=file.sha256)
    stable.info = replace(stable.info, trained_on=file.trained_on(base))
    return stable


def build_stable_sam(options: SegmenterOptions) -> StableSam:
    """Return Stable-SAM with the plugins of the package, or of a file that training wrote.

    A user's own file is told apart by its name, which stands as the variant.

    Raises:
        SegmenterError: a variant is asked for, or the device is not here.
        CheckpointError: the plugins or the weights of their SAM cannot be had, or do not fit.
    """
    stable = load_stable_sam(build_base_alone(options), options.checkpoint or WEIGHTS)
    stable.info = replace(
        stable.info, variant=options.checkpoint.stem if options.checkpoint else ""
    )
    return stable


def build_base_alone(options: SegmenterOptions) -> Sam:
    """Return the SAM that `build_stable_sam` puts plugins into, without them.

    Raises:
        SegmenterError: as there.
    """
    return open_part(options.checkpoint or WEIGHTS, KIND).open_base(options)


def _channels(base: Sam) -> int:
    return base.model.mask_decoder.transformer_dim


def _attach(model: SamModel, plugins: Plugins) -> dict[int, PluggedAttention]:
    """Put the plugins in place and return the attentions that have one, by layer."""
    transformer = cast(TwoWayTransformer, model.mask_decoder.transformer)
    places: list[tuple[nn.Module, str]] = [
        *((layer, "cross_attn_token_to_image") for layer in transformer.layers),
        (transformer, "final_attn_token_to_image"),
    ]
    layers = plugins.settings.layers
    if layers[-1] > len(places):
        raise SegmenterError(
            f"plugins cannot act at layer {layers[-1]} of the decoder; allowed: 1 to {len(places)}"
        )
    for layer in layers:
        if isinstance(getattr(*places[layer - 1]), PluggedAttention):
            raise SegmenterError(f"layer {layer} of the decoder has a plugin already")
    attentions = {}
    for layer in layers:
        owner, attribute = places[layer - 1]
        plugin = cast(Plugin, plugins[str(layer)])
        attention = cast(Attention, getattr(owner, attribute))
        grid_hw = model.prompt_encoder.image_embedding_size
        attentions[layer] = PluggedAttention(attention, plugin, grid_hw)
        setattr(owner, attribute, attentions[layer])
    return attentions


def _keep(inputs: dict[int, _Inputs], layer: int, _plugin: nn.Module, seen: _Inputs) -> None:
    inputs[layer] = seen


def _reading(
    attention: PluggedAttention,
    seen: _Inputs,
    embedding: SamEmbedding,
    *,
    side: int,
) -> Reading:
    """Return the reading of one layer from what its plugin was given."""
    keys, values, token = seen
    n, plugin = len(token), attention.plugin
    samples = plugin.dsp(values)
    mixture: Mixture = plugin(keys, values, token)
    share = mixture.share.expand(n)
    keys_read, _ = mixture.mixed()
    to_pixels = partial(_to_pixels, embedding=embedding, stride=side / keys.shape[1])
    return Reading(
        regular=to_pixels(regular_locations(keys)),
        locations=to_pixels(samples.locations.mean(dim=-2)).expand(n, -1, -1, -1),
        amplitude=samples.amplitude.mean(dim=-1).expand(n, -1, -1),
        routing=torch.stack([share, 1 - share], dim=1),
        token=token,
        attention=_shares(attention.attention, token, keys_read.view(-1, *keys.shape[1:])),
        attention_before=_shares(attention.attention, token, keys),
    )


def _to_pixels(locations: Tensor, *, embedding: SamEmbedding, stride: float) -> Tensor:
    """Return xy in pixels of the original image of xy in positions of the grid."""
    scale = input_scale(embedding.size_hw, embedding.input_size_hw)
    return ((locations + 0.5) * stride - 0.5) / locations.new_tensor(scale)


def _shares(attention: Attention, token: Tensor, keys: Tensor) -> Tensor:
    """Return (N, h, w), how tokens (N, C) divide their attention among keys, mean over heads."""
    heads = attention.num_heads
    q: Tensor = attention.q_proj(token).view(len(token), heads, -1)  # N x heads x d
    k: Tensor = attention.k_proj(keys).view(*keys.shape[:3], heads, -1)  # N x h x w x heads x d
    scores = torch.einsum("nad,nyxad->nayx", q, k.expand(len(q), -1, -1, -1, -1))
    weights = (scores / q.shape[-1] ** 0.5).flatten(2).softmax(dim=-1)
    shares: Tensor = weights.mean(dim=1).view(len(q), *keys.shape[1:3])
    return shares
