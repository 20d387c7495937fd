"""Attention between the few tokens of many prompts and the many positions of an image."""

import math

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor
from torch.nn import functional

from samrobust.segmenters.plugins import Mixture, PluggedAttention

FEW_TOKENS = 16
"""Up to so many tokens, bringing them to the image's C channels is less work than projecting all
image positions to the attention's C / 2 (counted at 8 heads: break-even at 17)."""


def tokens_to_image(
    attention: Attention | PluggedAttention, queries: Tensor, *, keys: Tensor, values: Tensor
) -> Tensor:
    """Return (N, T, C), what T tokens of N prompts take from the image's L positions.

    With K = X W and V = Y U, softmax(Q K') V = softmax((Q W') X') Y U. The bias of the keys adds
    the same to all scores of a query; the bias of the values is added as it is, as weights sum
    to 1.

    Args:
        attention: its weights, and the plugin that it may have.
        queries: (N, T, C).
        keys: (N, L, C), or (1, L, C) where the prompts share them: then they are projected once.
        values: likewise.
    """
    if isinstance(attention, PluggedAttention):
        mixture = attention.calibrate(queries, keys, values)
        attention = attention.attention
        if mixture.shares_parts:
            return _tokens_to_parts(attention, queries, mixture)
        keys, values = mixture.mixed()
    if len(keys) < len(queries):
        shared: Tensor = attention(queries.flatten(0, 1)[None], keys, values)
        return shared.view_as(queries)
    if queries.shape[1] > FEW_TOKENS:
        projected: Tensor = attention(queries, keys, values)
        return projected
    q = _scaled_heads(attention, attention.q_proj(queries))  # N x h x T x d
    q = q @ _by_head(attention, attention.k_proj.weight)  # N x h x T x C
    weights = (q.flatten(1, 2) @ keys.mT).softmax(dim=-1)  # N x hT x L
    context = (weights @ values).view(q.shape)  # N x h x T x C
    context = context @ _by_head(attention, attention.v_proj.weight).mT  # N x h x T x d
    out: Tensor = attention.out_proj(context.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def _tokens_to_parts(attention: Attention, queries: Tensor, mixture: Mixture) -> Tensor:
    """Return (N, T, C), what tokens of N prompts take from features that these mix, each its way.

    With keys K + s dK and values V + s dV, all L x d and projected once for all prompts, a query
    scores Q (K + s dK)' = (Q, s Q) (K, dK)', and its weights W take W V + s (W dV).

    Args:
        attention: its weights.
        queries: (N, T, C).
        mixture: of parts (1, L, C).
    """
    share = mixture.share[:, None, None, None]  # N x 1 x 1 x 1
    q = _scaled_heads(attention, attention.q_proj(queries))  # N x h x T x d
    q = torch.cat([q, share * q], dim=-1).transpose(0, 1)  # h x N x T x 2d
    k_change = functional.linear(mixture.key_change, attention.k_proj.weight)
    v_change = functional.linear(mixture.value_change, attention.v_proj.weight)
    parts = (attention.k_proj(mixture.keys), k_change), (attention.v_proj(mixture.values), v_change)
    k, v = (torch.cat([_heads(attention, x) for x in both], dim=-1) for both in parts)
    taken = functional.scaled_dot_product_attention(q.flatten(1, 2)[None], k, v, scale=1.0)
    regular, change = taken.view(q.shape).transpose(0, 1).chunk(2, dim=-1)  # N x h x T x d
    out: Tensor = attention.out_proj((regular + share * change).transpose(1, 2).flatten(2))
    return out


def image_to_tokens(
    attention: Attention, queries: Tensor, *, keys: Tensor, values: Tensor
) -> Tensor:
    """Return (N, L, C), what the image's L positions take from T tokens of N prompts.

    With Q = X W + b and output projection O, softmax(Q K') V O = softmax(X (K W')' + K b) (V O).

    Args:
        attention: its weights.
        queries: (N, L, C), or (1, L, C) where the prompts share them.
        keys: (N, T, C).
        values: likewise.
    """
    if keys.shape[1] > FEW_TOKENS:
        projected: Tensor = attention(queries, keys, values)
        return projected
    k = _scaled_heads(attention, attention.k_proj(keys))  # N x h x T x d
    bias = k @ attention.q_proj.bias.view(attention.num_heads, -1, 1)  # N x h x T x 1
    k = k @ _by_head(attention, attention.q_proj.weight)  # N x h x T x C
    scores = k.flatten(1, 2) @ queries.squeeze(0).mT  # N x hT x L
    weights = (scores.view(*k.shape[:3], -1) + bias).softmax(dim=2).flatten(1, 2)
    v = _heads(attention, attention.v_proj(values))
    v = v @ _by_head(attention, attention.out_proj.weight.mT)  # N x h x T x C
    return weights.mT @ (v + attention.out_proj.bias / attention.num_heads).flatten(1, 2)


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """Return (N, h, T, d) of (N, T, h * d)."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _scaled_heads(attention: Attention, x: Tensor) -> Tensor:
    """Return the heads divided by the root of their dimension."""
    heads = _heads(attention, x)
    return heads / math.sqrt(heads.shape[-1])


def _by_head(attention: Attention, weight: Tensor) -> Tensor:
    """Return (h, d, C) of (h * d, C)."""
    return weight.reshape(attention.num_heads, -1, weight.shape[-1])
