import copy
from functools import partial

import pytest
import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT

from samrobust.segmenters import sam_attention
from samrobust.segmenters.sam_attention import AttentionKind, compile_blocks, replace_attention

SIDES = (11, 13)
"""Of the grid of patches: each leaves a remainder after windows of 4."""


def encoder_and_pixels(dtype: torch.dtype = torch.float32) -> tuple[ImageEncoderViT, torch.Tensor]:
    """Return an encoder with windowed and global blocks and large weights, and two inputs."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=SIDES[0] * 16,
        embed_dim=24,
        depth=4,
        num_heads=2,
        out_chans=8,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1, 3),
    )
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return encoder.to(dtype), torch.randn(2, 3, SIDES[0] * 16, SIDES[0] * 16, dtype=dtype)


def replaced(encoder: ImageEncoderViT, kind: AttentionKind) -> ImageEncoderViT:
    copied = copy.deepcopy(encoder)
    replace_attention(copied, kind)
    return copied


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("block_scores", [1, 50, 500, 2**20])
def test_blocked_attention_is_bit_equal_to_stock(
    monkeypatch: pytest.MonkeyPatch, block_scores: int
) -> None:
    monkeypatch.setattr(sam_attention, "BLOCK_SCORES", block_scores)
    encoder, pixels = encoder_and_pixels(torch.float64)
    with torch.no_grad():
        found, wanted = replaced(encoder, "blocked")(pixels), encoder(pixels)
    assert relative_difference(found, wanted) < 1e-14  # blocks of one row are sums in other orders


def test_whole_blocks_of_float32_are_bit_equal_to_stock() -> None:
    encoder, pixels = encoder_and_pixels()
    with torch.no_grad():
        torch.testing.assert_close(
            replaced(encoder, "blocked")(pixels), encoder(pixels), rtol=0, atol=0
        )


@pytest.mark.parametrize("positions", [0, 16, 256])
def test_fused_attention_equals_stock(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr(sam_attention, "TABLE_POSITIONS", positions)
    encoder, pixels = encoder_and_pixels()
    with torch.no_grad():
        found, wanted = replaced(encoder, "fused")(pixels), encoder(pixels)
    assert relative_difference(found, wanted) < 1e-6


@pytest.mark.parametrize("kind", ["blocked", "fused"])
def test_a_grid_need_not_be_square(kind: AttentionKind) -> None:
    encoder, _ = encoder_and_pixels(torch.float64)
    block = encoder.blocks[0]
    x = torch.randn(2, *SIDES, 24, dtype=torch.float64)
    with torch.no_grad():
        wanted = block(x)
        replace_attention(encoder, kind)
        assert relative_difference(block(x), wanted) < 1e-14


@pytest.mark.parametrize("kind", ["blocked", "fused"])
@pytest.mark.parametrize("positions", [0, 256])
def test_half_precision_is_as_near_to_float32_as_stock(
    monkeypatch: pytest.MonkeyPatch, kind: AttentionKind, positions: int
) -> None:
    monkeypatch.setattr(sam_attention, "TABLE_POSITIONS", positions)
    encoder, pixels = encoder_and_pixels()
    narrow = copy.deepcopy(encoder).bfloat16()
    with torch.no_grad():
        wanted = encoder(pixels)
        stock = relative_difference(narrow(pixels.bfloat16()).float(), wanted)
        replace_attention(narrow, kind)
        found = relative_difference(narrow(pixels.bfloat16()).float(), wanted)
    assert found < 1.2 * stock


@pytest.mark.parametrize("kind", ["blocked", "fused"])
def test_gradients_flow_as_in_stock(kind: AttentionKind) -> None:
    encoder, pixels = encoder_and_pixels(torch.float64)
    other = replaced(encoder, kind)
    for model in (encoder, other):
        model(pixels).square().sum().backward()
    for found, wanted in zip(other.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-9, atol=1e-9)


def test_weights_stay_the_same_objects() -> None:
    encoder, _ = encoder_and_pixels()
    before = {id(weight) for weight in encoder.parameters()}
    replace_attention(encoder, "blocked")
    assert {id(weight) for weight in encoder.parameters()} == before


def test_stock_changes_nothing() -> None:
    encoder, _ = encoder_and_pixels()
    before = list(encoder.modules())
    replace_attention(encoder, "stock")
    assert list(encoder.modules()) == before


def test_blocks_are_compiled_whole_and_hooks_still_see_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = partial(torch.compile, backend="eager", fullgraph=True)  # what no kernel is made of
    monkeypatch.setattr(torch, "compile", trace)
    plain, pixels = encoder_and_pixels()
    replace_attention(plain, "fused")
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    seen: list[list[torch.Tensor]] = []
    for encoder in (plain, compiled):
        outputs: list[torch.Tensor] = []
        handle = encoder.blocks[-1].register_forward_hook(lambda *x, to=outputs: to.append(x[-1]))
        with torch.inference_mode():
            outputs += [encoder(pixels), encoder(pixels.flip(-1))]
        handle.remove()
        seen.append(outputs)
    assert len(seen[0]) == 4
    for found, wanted in zip(*seen, strict=True):
        assert torch.equal(found, wanted)
