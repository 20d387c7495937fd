import copy
import itertools
from functools import partial

import pytest
import torch
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from samrobust.segmenters.sam_decoder import (
    ALL_MASKS,
    CANDIDATES,
    FEW_TOKENS,
    SINGLE,
    FastDecoder,
    StockDecoder,
    nested,
    unflatten,
)
from tests.sam_weights import randomise, small_sam

GRID = (5, 7)
CHANNELS = 32
OUTPUT_TOKENS = 5


class DoublePromptEncoder(PromptEncoder):
    """A prompt encoder whose positions, float32 in any model, fit a float64 decoder."""

    def get_dense_pe(self) -> Tensor:
        return super().get_dense_pe().double()


class DecoderOnly(SamModel):
    """What the decoders look at of a SAM, small and with a grid that is not square."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        side = (GRID[0] * 16, GRID[1] * 16)
        self.prompt_encoder = DoublePromptEncoder(CHANNELS, GRID, side, mask_in_chans=16)
        self.mask_decoder = MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(2, CHANNELS, num_heads=4, mlp_dim=48),
        )


@pytest.fixture
def model() -> SamModel:
    torch.manual_seed(0)
    model = randomise(DecoderOnly())
    model.prompt_encoder.no_mask_embed.double()
    model.mask_decoder.double()
    return model


def features_and_prompts(n: int, n_prompt_tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(1, CHANNELS, *GRID, dtype=torch.float64),
        torch.randn(n, n_prompt_tokens, CHANNELS, dtype=torch.float64),
    )


def test_the_decoder_is_compiled_whole(model: SamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = partial(torch.compile, backend="eager", fullgraph=True)  # what no kernel is made of
    monkeypatch.setattr(torch, "compile", trace)
    compiled = FastDecoder(model, compiled=True)
    for n, n_prompt_tokens in ((4, 2), (7, 3)):
        features, prompts = features_and_prompts(n, n_prompt_tokens)
        with torch.inference_mode():
            found = compiled(features, prompts, masks=SINGLE)
            wanted = FastDecoder(model)(features, prompts, masks=SINGLE)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("masks", [SINGLE, CANDIDATES, ALL_MASKS])
@pytest.mark.parametrize("n_prompt_tokens", [1, 2, 11, 12, 20])
@pytest.mark.parametrize("n", [1, 4])
def test_fast_and_stock_are_the_same_function(
    model: SamModel, n: int, n_prompt_tokens: int, masks: range
) -> None:
    features, prompts = features_and_prompts(n, n_prompt_tokens)
    with torch.no_grad():
        found = FastDecoder(model)(features, prompts, masks=masks)
        wanted = StockDecoder(model)(features, prompts, masks=masks)
    assert found[0].shape == (n, len(masks), 4 * GRID[0], 4 * GRID[1])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_both_sides_of_the_token_limit_are_tried() -> None:
    assert OUTPUT_TOKENS + 11 == FEW_TOKENS


def test_gradients_flow_as_in_stock(model: SamModel) -> None:
    gradients = []
    for decoder_of in (FastDecoder, StockDecoder):
        tried = copy.deepcopy(model)
        inputs = [x.requires_grad_() for x in features_and_prompts(3, 2)]
        logits, quality = decoder_of(tried)(*inputs, masks=CANDIDATES)
        loss = logits.square().mean() + quality.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        named = [*tried.mask_decoder.named_parameters(), *zip("xy", inputs, strict=True)]
        gradients.append({name: x.grad for name, x in named if x.grad is not None})
    found, wanted = gradients
    for name, gradient in wanted.items():
        # What stock computes and drops has a gradient of 0 there and none here. A shift of all
        # scores of a query has a gradient that is 0 but for rounding.
        ours = found.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_rounding_in_float32_is_that_of_stock() -> None:
    model = small_sam(1024)  # the decoder and its grid in their real size
    torch.manual_seed(1)
    features = torch.randn(1, 256, 64, 64)
    for n_prompt_tokens, masks in itertools.product((2, 11), (SINGLE, CANDIDATES)):
        prompts = torch.randn(2, n_prompt_tokens, 256)
        with torch.no_grad():
            found, _ = FastDecoder(model)(features, prompts, masks=masks)
            stock, _ = StockDecoder(model)(features, prompts, masks=masks)
        assert (found - stock).norm() / stock.norm() < 1e-5


@pytest.mark.parametrize("doublings", [1, 2])
def test_nested_features_lie_where_the_decoder_doubles(doublings: int) -> None:
    scale = 2**doublings
    maps = torch.randn(2, 3, scale * GRID[0], scale * GRID[1])
    found = nested(maps, doublings)
    assert found.shape == (2, 3 * scale**2, *GRID)
    if doublings == 2:
        pixels = found.flatten(2).mT.reshape(2, -1, 3)
        assert torch.equal(unflatten(pixels.mT, torch.Size(GRID)), maps)
    else:
        for y, x in itertools.product(range(2), range(2)):
            assert torch.equal(found[:, 3 * (2 * y + x) :][:, :3], maps[..., y::2, x::2])


def test_finer_features_join_the_pixels_after_each_doubling(model: SamModel) -> None:
    features, prompts = features_and_prompts(3, 2)
    height, width = GRID
    once = torch.randn(1, CHANNELS // 4, 2 * height, 2 * width, dtype=torch.float64)
    twice = torch.randn(1, CHANNELS // 8, 4 * height, 4 * width, dtype=torch.float64)
    finer = torch.cat([features, nested(once, 1), nested(twice, 2)], dim=1)
    convolutions = model.mask_decoder.output_upscaling
    maps = {0: once, 3: twice}
    with torch.no_grad():
        found, quality = FastDecoder(model)(finer, prompts, masks=CANDIDATES)
        for (
            place,
            each,
        ) in maps.items():  # segment_anything's own convolutions, with sums after them
            convolutions[place].register_forward_hook(lambda _m, _i, out, each=each: out + each)
        wanted, wanted_quality = StockDecoder(model)(features, prompts, masks=CANDIDATES)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(quality, wanted_quality, rtol=1e-11, atol=1e-11)
