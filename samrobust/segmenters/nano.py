"""SAM-nano: SAM's own prompt encoder and mask decoder, small, behind a convolutional encoder.

Ours in the decoder are its first weights and what joins its upscaling: finer features of the image,
as in SAM 2, for which SAM's own upscaling has no place.
It ships with the package, so that a fresh install measures a segmenter that has learned, and it is
trained in the suite (`samrobust.training.sam_nano`). It is no competitor of SAM.
"""

from pathlib import Path
from typing import cast

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import nn

from samrobust.provenance import origins_of_training
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.nano_encoder import NanoEncoder
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.weights import fill_model, load_header, load_tensors
from samrobust.types import SegmenterOptions

NAME = "sam-nano"
WEIGHTS = Path(__file__).parent / "weights" / "sam-nano.safetensors"
"""Trained with `samrobust train sam-nano` by one command (docs/models/sam-nano.md)."""
SIDE = 448
"""Pixels of the square input."""
STRIDE = 16
"""Pixels of the input a position of the embedding: a grid of 28 x 28, masks of 112 x 112."""
MASK_STRIDE = 4
"""Pixels of the input a position of a mask."""
CHANNELS = 128
"""C of the embedding and the decoder; SAM's is 256."""
HEADS = 4
LEAST_FREQUENCY = 1 / 16
"""Of the positional encoding, in turns per half side of the input; the others are multiples."""


def nano_model(side: int = SIDE) -> SamModel:
    """Return a SAM-nano with random weights.

    The frequencies of its positional encoding are not SAM's random ones: half of them run along x
    and half along y, in equal steps. So "right of this corner" is a short sum of products of
    encodings, and the decoder learns what a box is in fewer steps.

    Args:
        side: pixels of the square input, a multiple of 32.
    """
    grid = side // STRIDE
    prompt_encoder = PromptEncoder(
        embed_dim=CHANNELS,
        image_embedding_size=(grid, grid),
        input_image_size=(side, side),
        mask_in_chans=16,
    )
    n_each = CHANNELS // 4
    frequencies = LEAST_FREQUENCY * torch.arange(1, n_each + 1)
    along = torch.zeros(2, CHANNELS // 2)
    along[0, :n_each] = along[1, n_each:] = frequencies
    prompt_encoder.pe_layer.register_buffer("positional_encoding_gaussian_matrix", along)
    transformer = TwoWayTransformer(
        depth=2, embedding_dim=CHANNELS, num_heads=HEADS, mlp_dim=4 * CHANNELS
    )
    _align(transformer)
    decoder = MaskDecoder(
        transformer_dim=CHANNELS,
        transformer=transformer,
        num_multimask_outputs=3,
        activation=nn.ReLU,  # GELU takes a third of the time of upscaling on a CPU
        iou_head_depth=3,
        iou_head_hidden_dim=CHANNELS,
    )
    encoder = cast(
        ImageEncoderViT, NanoEncoder(side, CHANNELS).to(memory_format=torch.channels_last)
    )
    return SamModel(encoder, prompt_encoder, decoder)


def set_side(model: SamModel, side: int) -> None:
    """Let a SAM-nano take inputs of another side: its weights fit all.

    Args:
        model: changed in place; what was made of it before, as a `Sam`, does not know.
        side: in pixels, a multiple of 32.
    """
    grid = side // STRIDE
    model.image_encoder.img_size = side
    model.prompt_encoder.input_image_size = (side, side)
    model.prompt_encoder.image_embedding_size = (grid, grid)


def build_sam_nano(options: SegmenterOptions) -> Sam:
    """Return SAM-nano with the weights of the package, or of a file that training wrote.

    Raises:
        SegmenterError: the device is not here.
        CheckpointError: the weights are not SAM-nano's.
    """
    device = resolve_device(options.device)
    path = options.checkpoint or WEIGHTS
    model = nano_model()
    fill_model(model, load_tensors(path), path=path)
    chosen = SamOptions(options.frame, options.dtype, attention="stock", compiled=options.compile)
    return Sam(
        model.to(device),
        chosen,
        name=NAME,
        checkpoint_sha256=file_sha256(path),
        trained_on=origins_of_training(load_header(path)),
        takes_masks=False,  # its training gives it none
    )


def _align(transformer: TwoWayTransformer) -> None:
    """Let attention begin between what is alike, and hand on what it reads as it is.

    Queries and keys start with the same orthogonal projection, and values come back through the
    transpose of theirs (after Trockman and Kolter 2023, "Mimetic initialization of self-attention
    layers"). A decoder that started so
    came to the same loss on ellipses in 120 steps instead of 300 (one run each).
    """
    with torch.no_grad():
        for attention in transformer.modules():
            if isinstance(attention, Attention):
                nn.init.orthogonal_(attention.q_proj.weight)
                attention.k_proj.weight.copy_(attention.q_proj.weight)
                nn.init.orthogonal_(attention.v_proj.weight)
                attention.out_proj.weight.copy_(attention.v_proj.weight.T)
