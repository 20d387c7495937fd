"""The image encoder's attention without its (heads, 4096, 4096) tables in memory: same weights."""

from collections.abc import Iterator
from typing import Literal, cast

import torch
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional

AttentionKind = Literal["blocked", "fused", "stock"]

TABLE_POSITIONS = 256
"""Up to so many positions, those of a window of ViT-B, L or H (14 x 14), a table is added."""
BLOCK_SCORES = 2**20
"""Attention scores held at once: 4 MiB of float32, so that they never leave a CPU's cache."""


def replace_attention(encoder: ImageEncoderViT, kind: AttentionKind) -> None:
    """Let every block of an encoder attend in another way, with its own weights.

    Load the weights first: their names change.

    Args:
        encoder: of a SAM; changed in place.
        kind: "blocked" (bit-equal to stock on a CPU, and fastest there in float32), "fused" (one
            kernel a block: for accelerators and half precision) or "stock" (nothing is changed).
    """
    if kind == "stock":
        return
    wrapper = BlockedAttention if kind == "blocked" else FusedAttention
    for block in encoder.blocks:
        block.attn = wrapper(cast(Block, block).attn)


def compile_blocks(encoder: ImageEncoderViT) -> None:
    """Let torch compile the blocks of an encoder when they first run, which takes a minute or so.

    Blocks of one kind share what is compiled. What hooks on them do is not compiled.

    Args:
        encoder: of a SAM; changed in place.
    """
    for block in encoder.blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


class BlockedAttention(nn.Module):
    """Attention whose scores are made, used and dropped in blocks of `BLOCK_SCORES`.

    Args:
        attention: with decomposed relative positions (Li et al. 2022, MViTv2, sec. 4.1).
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of the same: all positions of a window, or of the image, attend."""
        size_hw = (x.shape[1], x.shape[2])
        q, k, v = _project(self.attention, x)
        along_h, along_w = _relative_scores(self.attention, q, size_hw)
        q = q * self.attention.scale
        out = torch.empty_like(q)
        for heads, rows in _blocks(*q.shape[:2]):
            scores = q[heads, rows] @ k[heads].mT
            by_place = scores.view(*scores.shape[:2], *size_hw)
            by_place += along_h[heads, rows, :, None]
            by_place += along_w[heads, rows, None, :]
            out[heads, rows] = scores.softmax(dim=-1) @ v[heads]
        return _merge_heads(self.attention, out, x.shape)


class FusedAttention(nn.Module):
    """Attention by one fused kernel, to which the relative positions are given.

    The score of a query q and a key at row i, column j is q k + h[i] + w[j], where h and w depend
    on q alone. Up to `TABLE_POSITIONS` positions, the table of h + w is added to the scores;
    beyond, where it would be large, they join the head dimension: the product of (q, h, w) with
    (k, one-hot i, one-hot j).

    Args:
        attention: with decomposed relative positions.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) of the same."""
        height, width = x.shape[1:3]
        q, k, v = _split_heads(self.attention, x)
        relative = _relative_scores(self.attention, q.flatten(0, 1), (height, width))
        along_h, along_w = (scores.view(*q.shape[:3], -1) for scores in relative)
        scale: float = self.attention.scale
        if height * width <= TABLE_POSITIONS:
            table = (along_h[..., :, None] + along_w[..., None, :]).flatten(3)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=table, scale=scale)
        else:
            rows = torch.eye(height, dtype=q.dtype, device=q.device).repeat_interleave(width, dim=0)
            columns = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
            places = torch.cat([rows, columns], dim=1).expand(*k.shape[:2], -1, -1)
            out = functional.scaled_dot_product_attention(
                torch.cat([q * scale, along_h, along_w], dim=-1),
                torch.cat([k, places], dim=-1),
                functional.pad(v, (0, height + width)),  # the kernels want equal widths
                scale=1.0,
            )[..., : v.shape[-1]]
        merged: Tensor = self.attention.proj(out.transpose(1, 2).reshape(x.shape))
        return merged


def _split_heads(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of (B, H, W, C), (B, heads, H * W, d) each, as views."""
    qkv = attention.qkv(x).view(len(x), x.shape[1] * x.shape[2], 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _project(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (B * heads, H * W, d) each."""
    q, k, v = (part.flatten(0, 1).contiguous() for part in _split_heads(attention, x))
    return q, k, v


def _relative_scores(
    attention: Attention, q: Tensor, size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return what each query adds to all keys of a row, (B * heads, H * W, H), and of a column."""
    height, width = size_hw
    grid = q.view(-1, height, width, q.shape[-1])
    of_rows = _relative_positions(height, attention.rel_pos_h)
    of_columns = _relative_positions(width, attention.rel_pos_w)
    along_h = torch.einsum("byxc,ykc->byxk", grid, of_rows)
    along_w = torch.einsum("byxc,xkc->byxk", grid, of_columns)
    return along_h.flatten(1, 2), along_w.flatten(1, 2)


def _relative_positions(n: int, learned: Tensor) -> Tensor:
    """Return (n, n, d), of each query's row (or column) to each key's.

    Made on the device, as segment_anything's way waits for a copy from the host in each block.
    """
    if len(learned) != 2 * n - 1:
        return get_rel_pos(n, n, learned)  # which interpolates
    places = torch.arange(n, device=learned.device)
    return learned[places[:, None] - places + (n - 1)]


def _blocks(n_heads: int, n_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Yield (heads, rows) of blocks of the scores: many small heads, or some rows of a large."""
    heads_at_once = max(1, BLOCK_SCORES // n_tokens**2)
    rows_at_once = max(1, min(n_tokens, BLOCK_SCORES // n_tokens))
    for head in range(0, n_heads, heads_at_once):
        for row in range(0, n_tokens, rows_at_once):
            yield slice(head, head + heads_at_once), slice(row, row + rows_at_once)


def _merge_heads(attention: Attention, out: Tensor, shape: torch.Size) -> Tensor:
    """Return (B, H, W, C) of (B * heads, H * W, d)."""
    by_head = out.reshape(shape[0], attention.num_heads, *out.shape[1:])
    merged: Tensor = attention.proj(by_head.transpose(1, 2).reshape(shape))
    return merged
