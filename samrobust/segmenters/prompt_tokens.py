"""SAM's prompt encoder without masked assignment, which makes a GPU wait for the host."""

from typing import cast

import torch
from segment_anything.modeling.prompt_encoder import PromptEncoder
from torch import Tensor, nn
from torch.nn import functional

from samrobust.types import FOREGROUND

PADDING = -1
"""The label of what is no point; one stands after the points of a prompt without a box."""


def prompt_tokens(
    encoder: PromptEncoder, boxes: Tensor | None, points: Tensor, labels: Tensor
) -> Tensor:
    """Return (N, P, C), the tokens of N prompts, equal to `encoder`'s own to the last bit.

    P is K, 1 more without boxes, for padding, and 2 more with them, for corners; but 2 where K = 0.

    Args:
        encoder: its positions and weights; gradients flow to them.
        boxes: (N, 4) float32 xyxy in pixels of the encoder's square input, or None.
        points: (N, K, 2) float32 xy likewise; K may be 0 where there are boxes.
        labels: (N, K), 1 foreground, 0 background or `PADDING`.
    """
    tokens = []
    if points.shape[1]:
        if boxes is None:
            points = functional.pad(points, (0, 0, 0, 1))
            labels = functional.pad(labels, (0, 1), value=PADDING)
        tokens.append(_point_tokens(encoder, points, labels[..., None]))
    if boxes is not None:
        tokens.append(_corner_tokens(encoder, boxes.view(-1, 2, 2)))
    return torch.cat(tokens, dim=1)


def _point_tokens(encoder: PromptEncoder, points: Tensor, labels: Tensor) -> Tensor:
    """Return (N, K, C) of points (N, K, 2) and labels (N, K, 1)."""
    background, foreground = _kinds(encoder)[:2]
    kinds = torch.where(labels == FOREGROUND, foreground, background)  # N x K x C
    tokens = _positions(encoder, points) + kinds
    return torch.where(labels == PADDING, encoder.not_a_point_embed.weight, tokens)


def _corner_tokens(encoder: PromptEncoder, corners: Tensor) -> Tensor:
    """Return (N, 2, C) of the first and the last corner, (N, 2, 2)."""
    kinds = torch.cat(_kinds(encoder)[2:])  # 2 x C
    return _positions(encoder, corners) + kinds


def _kinds(encoder: PromptEncoder) -> list[Tensor]:
    """Return (1, C) each: of a background and a foreground point, a first and a last corner."""
    return [cast(nn.Embedding, kind).weight for kind in encoder.point_embeddings]


def _positions(encoder: PromptEncoder, xy: Tensor) -> Tensor:
    """Return (N, K, C) of the middles of the pixels at (N, K, 2)."""
    positions: Tensor = encoder.pe_layer.forward_with_coords(xy + 0.5, encoder.input_image_size)
    return positions
