import copy
import itertools

import pytest
import torch
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from samrobust.segmenters.nano_encoder import SpatialBlock, with_spatial_blocks
from samrobust.segmenters.sam_decoder import (
    ALL_MASKS,
    CANDIDATES,
    FEW_TOKENS,
    SINGLE,
    FastDecoder,
    StockDecoder,
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


@pytest.fixture(params=["SAM's upscaling", "with spatial blocks"])
def model(request: pytest.FixtureRequest) -> SamModel:
    torch.manual_seed(0)
    model = DecoderOnly()
    if request.param == "with spatial blocks":
        decoder = model.mask_decoder
        decoder.output_upscaling = with_spatial_blocks(decoder.output_upscaling)
    randomise(model)
    model.prompt_encoder.no_mask_embed.double()
    model.mask_decoder.double()
    return model


def features_and_prompts(n: int, n_prompt_tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(1, CHANNELS, *GRID, dtype=torch.float64),
        torch.randn(n, n_prompt_tokens, CHANNELS, dtype=torch.float64),
    )


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


def test_spatial_blocks_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    upscaling = DecoderOnly().mask_decoder.output_upscaling
    longer = with_spatial_blocks(upscaling)
    assert [type(module) for module in longer].count(SpatialBlock) == 4
    image = torch.randn(2, CHANNELS, *GRID)
    assert torch.equal(longer(image), upscaling(image))


def test_a_spatial_block_sees_two_positions_far() -> None:
    torch.manual_seed(0)
    block = SpatialBlock(8)
    nn.init.normal_(block.mix.weight)
    image = torch.randn(1, 8, 9, 9)
    changed = image.clone()
    changed[..., 4, 4] += 1
    with torch.no_grad():
        differs = (block(changed) != block(image)).any(dim=1)[0]
    wanted = torch.zeros(9, 9, dtype=torch.bool)
    wanted[2:7, 2:7] = True
    assert torch.equal(differs, wanted)
