import copy

import pytest
import torch
from torch import Tensor

from samrobust.segmenters.hq_modules import HqDecoder, HqParts, StockHqDecoder
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.sam_decoder import CANDIDATES, SINGLE
from tests.sam_weights import random_image, random_parts, random_prompts, randomise, small_sam
from tests.test_sam_decoder import CHANNELS, GRID, DecoderOnly

Parts = tuple[DecoderOnly, HqParts]


@pytest.fixture
def parts() -> Parts:
    """Return a decoder with the parts of an HQ-SAM, in float64, on a grid that is not square."""
    torch.manual_seed(0)
    model = randomise(DecoderOnly())
    model.prompt_encoder.no_mask_embed.double()
    model.mask_decoder.double()
    assert isinstance(model, DecoderOnly)
    return model, HqParts(CHANNELS, early_channels=8).double()


def inputs(n: int, n_prompt_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, details and prompts."""
    torch.manual_seed(1)
    fine = (4 * GRID[0], 4 * GRID[1])
    shapes = ((1, CHANNELS, *GRID), (1, CHANNELS // 8, *fine), (n, n_prompt_tokens, CHANNELS))
    features, details, prompts = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return features, details, prompts


@pytest.mark.parametrize("masks", [SINGLE, CANDIDATES])
@pytest.mark.parametrize("n_prompt_tokens", [1, 12])
@pytest.mark.parametrize("n", [1, 3])
def test_fast_and_stock_are_the_same_function(
    parts: Parts, n: int, n_prompt_tokens: int, masks: range
) -> None:
    given = inputs(n, n_prompt_tokens)
    with torch.no_grad():
        found = HqDecoder(*parts)(*given, masks=masks)
        wanted = StockHqDecoder(*parts)(*given, masks=masks)
    assert found[2].shape == (n, 1, 4 * GRID[0], 4 * GRID[1])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradients_flow_as_in_stock(parts: Parts) -> None:
    gradients = []
    for decoder_of in (HqDecoder, StockHqDecoder):
        model, own = copy.deepcopy(parts)
        features, details, prompts = (x.requires_grad_() for x in inputs(3, 2))
        _, _, hq = decoder_of(model, own)(features, details, prompts, masks=SINGLE)
        hq.square().mean().backward()  # type: ignore[no-untyped-call]
        learned = [x for x in own.parameters() if x.grad is not None]
        gradients.append([x.grad for x in (*learned, features, details, prompts)])
    assert len(gradients[0]) == 16
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_rounding_in_float32_is_that_of_stock() -> None:
    size_hw = (303, 410)
    kinds = (SamOptions(), SamOptions(decoder="stock"))
    answers = []
    for options, decoder_of in zip(kinds, (HqDecoder, StockHqDecoder), strict=True):
        base = Sam(small_sam(512), options)
        hq = HqSam(base, random_parts(base.model), output="hq")
        assert isinstance(hq._decode, decoder_of)
        with torch.inference_mode():
            (embedding,) = hq.encode([random_image(size_hw)])
            prompts = random_prompts(size_hw, 2, 1, boxes=True)
            answers.append(hq.logits(embedding, prompts)[0])
    found, stock = answers
    assert (found - stock).norm() / stock.norm() < 1e-5
    assert 0.1 < (stock > 0).double().mean() < 0.9
