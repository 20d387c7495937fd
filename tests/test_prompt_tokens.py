"""Prompt tokens beside segment_anything's own prompt encoder."""

import copy

import pytest
import torch
from segment_anything.modeling.prompt_encoder import PromptEncoder
from torch import Tensor

from samrobust.segmenters.sam_decoder import prompt_tokens

CHANNELS = 32
SIDE_HW = (80, 112)
"""Not square, so that no axis can be taken for the other."""
STRUCTURES = [(True, 0), (True, 1), (True, 10), (False, 1), (False, 3), (False, 10)]
"""With boxes or without, number of points."""


@pytest.fixture
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(CHANNELS, (5, 7), SIDE_HW, mask_in_chans=16)


def prompts(n: int, n_points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, points and labels, some beyond the border, some points padding."""
    generator = torch.Generator().manual_seed(n_points)
    extent = torch.tensor([SIDE_HW[1], SIDE_HW[0]])
    corners = torch.rand(n, 2, 2, generator=generator) * 1.2 * extent - 5
    points = torch.rand(n, n_points, 2, generator=generator) * extent
    labels = torch.randint(-1, 2, (n, n_points), generator=generator, dtype=torch.int32)
    return corners.flatten(1), points, labels


@pytest.mark.parametrize(("has_boxes", "n_points"), STRUCTURES)
@pytest.mark.parametrize("n", [1, 7])
def test_tokens_are_those_of_segment_anything(
    encoder: PromptEncoder, n: int, n_points: int, has_boxes: bool
) -> None:
    boxes, points, labels = prompts(n, n_points)
    given = boxes if has_boxes else None
    wanted, _ = encoder((points, labels) if n_points else None, given, masks=None)
    found = prompt_tokens(encoder, given, points, labels)
    assert found.shape == (n, n_points + (2 if has_boxes else 1), CHANNELS)
    assert torch.equal(found, wanted)


def test_every_label_is_tried() -> None:
    assert set(prompts(7, 10)[2].flatten().tolist()) == {-1, 0, 1}


def test_the_arguments_are_left_as_they_are(encoder: PromptEncoder) -> None:
    given = prompts(2, 3)
    before = [each.clone() for each in given]
    prompt_tokens(encoder, *given)
    assert all(map(torch.equal, given, before))


def test_weights_get_the_gradients_of_segment_anything(encoder: PromptEncoder) -> None:
    theirs = copy.deepcopy(encoder)
    _, points, labels = prompts(5, 4)
    prompt_tokens(encoder, None, points, labels).square().sum().backward()  # type: ignore[no-untyped-call]
    theirs((points, labels), None, masks=None)[0].square().sum().backward()
    for ours, wanted in zip(encoder.parameters(), theirs.parameters(), strict=True):
        assert (ours.grad is None) == (wanted.grad is None)
        if wanted.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, wanted.grad)
