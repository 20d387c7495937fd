from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from samrobust.metrics.overlap import dice_loss
from samrobust.seeding import keyed_generator
from samrobust.segmenters.hq_modules import untrained_parts
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.nano import CHANNELS, MASK_STRIDE, SIDE, build_sam_nano
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.segmenters.sam import Sam, SamEmbedding
from samrobust.segmenters.sam_decoder import ALL_MASKS, SINGLE
from samrobust.segmenters.stable_plugins import Plugins
from samrobust.segmenters.stable_sam import StableSam
from samrobust.training import losses as losses_module
from samrobust.training.examples import Example
from samrobust.training.losses import (
    count_corrections,
    draw_points,
    example_losses,
    mask_loss,
    pixel_loss,
    uncertain_points,
    with_corrections,
)
from samrobust.training.recipe import LossWeights, Recipe
from samrobust.types import SegmenterOptions
from tests.conftest import blobs
from tests.sam_weights import random_prompts
from tests.trainings import tiny_recipe

SIZE_HW = (21, 34)


def made(n: int = 3, *, masks: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, qualities and targets of N prompts."""
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, masks, *SIZE_HW, generator=rng)
    quality = torch.rand(n, masks, generator=rng)
    targets = torch.rand(n, *SIZE_HW, generator=rng) < 0.4
    return logits, quality, targets


def prompt_losses(
    logits: Tensor, quality: Tensor, targets: Tensor, weights: LossWeights, seed: int = 0
) -> dict[str, Tensor]:
    """Return the losses, with points of a seed where they are compared at some positions."""
    points = None
    if weights.sampled:
        drawn = draw_points(targets.shape[1:], weights.sampled, np.random.default_rng(seed))
        points = drawn.expand(len(targets), -1, -1)
    return losses_module.prompt_losses(logits, quality, targets, weights, points)


def test_dice_is_that_of_plain_sums() -> None:
    logits, _, targets = made()
    found = dice_loss(logits, targets[:, None].float())
    assert found.shape == (3, 4)
    for n in range(3):
        for m in range(4):
            soft = 1 / (1 + np.exp(-logits[n, m].double().numpy()))
            target = targets[n].numpy()
            both = soft[target].sum()
            wanted = 1 - (2 * both + 1) / (soft.sum() + np.count_nonzero(target) + 1)
            assert found[n, m].item() == pytest.approx(wanted, abs=1e-6)


def test_dice_of_clear_masks_is_the_dice_coefficient() -> None:
    target = torch.zeros(SIZE_HW)
    target[3:13, 4:24] = 1  # 200 pixels
    other = torch.zeros(SIZE_HW)
    other[3:13, 14:34] = 1  # half of it common
    logits = 100 * (2 * torch.stack([target, other, 1 - target]) - 1)
    found = dice_loss(logits, target.expand(3, -1, -1))
    size = SIZE_HW[0] * SIZE_HW[1]
    wanted = torch.tensor([0, 1 - 201 / 401, 1 - 1 / (size + 1)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_pixel_loss_is_the_focal_loss_of_torchvision_without_alpha(gamma: float) -> None:
    logits, _, targets = made()
    wanted_targets = targets[:, None].float().expand_as(logits)
    theirs = sigmoid_focal_loss(logits, wanted_targets, alpha=-1, gamma=gamma)
    found = pixel_loss(logits, wanted_targets, gamma=gamma)
    torch.testing.assert_close(found, theirs.mean(dim=(-2, -1)))


def test_focal_loss_counts_what_is_clear_for_less() -> None:
    target = torch.ones(SIZE_HW)
    clear, unclear = torch.full(SIZE_HW, 4.0), torch.full(SIZE_HW, 0.1)
    shares = [
        (pixel_loss(logits, target, gamma=2.0) / pixel_loss(logits, target)).item()
        for logits in (clear, unclear)
    ]
    assert shares[0] < 1e-3 < 0.2 < shares[1]


def test_mask_loss_is_the_weighted_sum() -> None:
    logits, _, targets = made()
    wanted = targets[:, None].float().expand_as(logits)
    found = mask_loss(logits, wanted, LossWeights(cross_entropy=3.0, dice=0.5))
    bce = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    torch.testing.assert_close(found, 3 * bce.mean(dim=(-2, -1)) + 0.5 * dice_loss(logits, wanted))


def test_of_the_candidates_only_the_best_learns() -> None:
    logits, quality, targets = made()
    rows, best = torch.arange(3), torch.tensor([2, 1, 3])
    logits[rows, best] = 4 * (2 * targets.float() - 1)  # right, but not sure
    logits.requires_grad_()
    losses = prompt_losses(logits, quality, targets, LossWeights())
    losses["candidate"].sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    touched = logits.grad.abs().amax(dim=(-2, -1)) > 0
    wanted = torch.zeros(3, 4, dtype=torch.bool)
    wanted[rows, best] = True
    assert torch.equal(touched, wanted)


def test_the_single_mask_learns_from_every_prompt_and_alone() -> None:
    logits, quality, targets = made()
    logits.requires_grad_()
    losses = prompt_losses(logits, quality, targets, LossWeights())
    losses["single"].sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    touched = logits.grad.abs().amax(dim=(-2, -1)) > 0
    assert torch.equal(touched, torch.tensor([[True, False, False, False]] * 3))


def test_losses_of_a_prompt_do_not_depend_on_the_others() -> None:
    logits, quality, targets = made()
    together = prompt_losses(logits, quality, targets, LossWeights())
    for n in range(3):
        part = slice(n, n + 1)
        alone = prompt_losses(logits[part], quality[part], targets[part], LossWeights())
        for name, loss in alone.items():
            torch.testing.assert_close(loss[0], together[name][n])


def test_qualities_learn_the_iou_and_masks_nothing_from_it() -> None:
    logits, quality, targets = made()
    logits.requires_grad_()
    quality.requires_grad_()
    weights = LossWeights(quality=0.25)
    found = prompt_losses(logits, quality, targets, weights)["quality"]
    masks, wanted = logits.detach().numpy() > 0, targets.numpy()[:, None]
    iou = (masks & wanted).sum((2, 3)) / (masks | wanted).sum((2, 3))
    squared = ((quality.detach().numpy() - iou) ** 2).mean(axis=1)
    np.testing.assert_allclose(found.detach().numpy(), 0.25 * squared, rtol=1e-5)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is None
    assert quality.grad is not None
    np.testing.assert_allclose(
        quality.grad.numpy(), 0.25 * 2 * (quality.detach().numpy() - iou) / 4, rtol=1e-5
    )


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("filled", [False, True])
def test_empty_and_full_masks_have_finite_losses_and_gradients(logit: float, filled: bool) -> None:
    logits = torch.full((2, 4, *SIZE_HW), logit, requires_grad=True)
    quality = torch.zeros(2, 4, requires_grad=True)
    targets = torch.full((2, *SIZE_HW), filled)
    losses = prompt_losses(logits, quality, targets, replace(LossWeights(), focal_gamma=2.0))
    total = torch.stack(list(losses.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert total.isfinite()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    if logit == 0:
        assert bool(logits.grad[:, 0].any())


def test_one_wrong_pixel_costs_less_than_two() -> None:
    targets = torch.zeros(1, *SIZE_HW, dtype=torch.bool)
    targets[0, 20, 33] = True  # one pixel, in the corner
    losses = []
    for n_wrong in range(3):
        logits = torch.full((1, 4, *SIZE_HW), -8.0)
        logits[..., 20, 33] = 8
        logits[..., 0, :n_wrong] = 8
        found = prompt_losses(logits, torch.ones(1, 4), targets, LossWeights())
        losses.append({name: loss.item() for name, loss in found.items()})
    for name in ("single", "candidate", "quality"):
        assert losses[0][name] < losses[1][name] < losses[2][name]


def test_what_has_no_weight_is_left_out() -> None:
    logits, quality, targets = made(masks=1)
    weights = LossWeights(quality=0.0, candidate=0.0)
    found = prompt_losses(logits, quality[:, :1], targets, weights)
    assert list(found) == ["single"]
    whole, all_qualities, _ = made()
    theirs = prompt_losses(whole, all_qualities, targets, LossWeights(candidate=0.5))
    full = prompt_losses(whole, all_qualities, targets, LossWeights())
    torch.testing.assert_close(theirs["candidate"], 0.5 * full["candidate"])


def test_points_lie_where_the_mask_is_unsure_and_a_quarter_anywhere() -> None:
    x = torch.linspace(-20, 20, 64).expand(1, 1, 48, 64)  # sure but for the middle columns
    drawn = draw_points((48, 64), 0.5, np.random.default_rng(0))
    points = uncertain_points(x, drawn[None])
    assert points.shape == (1, 1, 24**2, 2)
    assert points.abs().max() <= 1
    unsure, sure = points[0, 0, :432, 0].abs(), points[0, 0, 432:, 0].abs()
    assert unsure.max() < 0.3  # three quarters of P are a quarter of the places drawn
    assert sure.mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_sampled_loss_is_near_that_of_all_positions_where_nothing_is_surer() -> None:
    rng = torch.Generator().manual_seed(1)
    signs = torch.where(torch.rand(1, 4, 64, 64, generator=rng) < 0.5, 1.0, -1.0)
    logits = signs.repeat_interleave(4, 2).repeat_interleave(4, 3)  # flat but for the seams
    targets = torch.rand(1, 64, 64, generator=rng) < 0.5
    targets = targets.repeat_interleave(4, 1).repeat_interleave(4, 2)
    weights = LossWeights(quality=0.0)
    whole = prompt_losses(logits, torch.zeros(1, 4), targets, weights)
    found = [
        prompt_losses(logits, torch.zeros(1, 4), targets, replace(weights, sampled=0.4), seed)
        for seed in range(4)
    ]
    mean = torch.stack([each["single"] for each in found]).mean().item()
    assert mean == pytest.approx(whole["single"].item(), rel=0.15)
    assert found[0]["single"].item() != found[1]["single"].item()


def test_a_sampled_loss_teaches_masks_of_odd_sides_and_repeats() -> None:
    logits, quality, targets = made()
    logits.requires_grad_()
    weights = LossWeights(sampled=0.4375)
    one, other = (prompt_losses(logits, quality, targets, weights)["single"] for _ in range(2))
    assert torch.equal(one, other)
    one.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(logits.grad[:, 0].any())
    assert bool(logits.grad.isfinite().all())


def one_by_one(
    segmenter: Sam | StableSam | HqSam, embedded: list[tuple[Example, SamEmbedding]], recipe: Recipe
) -> dict[str, Tensor]:
    """Return the mean losses by a call of the decoder for each image, kind of prompts and round."""
    masks = ALL_MASKS if recipe.loss.candidate or recipe.loss.quality else SINGLE
    found: list[dict[str, Tensor]] = []
    for example, embedding in embedded:
        points_rng = keyed_generator("points", recipe.seed, *example.key)
        correct_rng = keyed_generator("correct", recipe.seed, *example.key)
        for kind in example.prompts:
            prompts = kind
            for corrections_left in (1, 0):
                points = None
                if recipe.loss.sampled:
                    size_hw = example.targets.shape[1:]
                    drawn = draw_points(size_hw, recipe.loss.sampled, points_rng)
                    points = drawn.expand(len(prompts), -1, -1)
                logits, quality = segmenter.logits(embedding, prompts, masks=masks)
                losses = losses_module.prompt_losses(
                    logits, quality, example.targets, recipe.loss, points
                )
                found.append({name: loss.mean() for name, loss in losses.items()})
                if corrections_left:
                    answer = logits[:, 0].detach()
                    prompts = with_corrections(example, prompts, answer, correct_rng)
    return {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}


@pytest.mark.parametrize(
    ("model", "sampled"),
    [
        ("sam-nano", 0.0),
        ("sam-nano", 0.25),
        ("stable-sam", 0.25),
        ("stable-sam at layer 1", 0.0),
        ("hq-sam", 0.25),
    ],
)
def test_images_decoded_together_have_the_losses_and_gradients_of_one_by_one(
    model: str, sampled: float
) -> None:
    base = build_sam_nano(SegmenterOptions())
    segmenter: Sam | StableSam | HqSam = base
    learned: nn.Module = base.model.mask_decoder
    torch.manual_seed(0)
    weights = LossWeights(sampled=sampled)
    if model.startswith("stable-sam"):
        layers = (1, 2) if model.endswith("1") else (2,)
        learned = plugins = Plugins(CHANNELS, PluginSettings(layers=layers))
        for parameter in plugins.parameters():
            nn.init.normal_(parameter, std=0.1)
        segmenter = StableSam(base, plugins)
    elif model == "hq-sam":
        weights = replace(weights, candidate=0.0, quality=0.0)
        learned = parts = untrained_parts(base.model)
        segmenter = HqSam(base, parts)
    learned.requires_grad_(True)
    recipe = replace(tiny_recipe(), loss=weights, corrections=1.0)
    embedded = _three_examples(segmenter)
    assert count_corrections(recipe, embedded[0][0].key[0])
    losses: list[dict[str, Tensor]] = []
    gradients: list[Tensor] = []
    for way in (one_by_one, example_losses):
        learned.zero_grad()
        losses.append(way(segmenter, embedded, recipe))
        torch.stack(list(losses[-1].values())).sum().backward()  # type: ignore[no-untyped-call]
        of_each = [torch.zeros_like(x) if x.grad is None else x.grad for x in learned.parameters()]
        gradients.append(torch.cat([gradient.flatten() for gradient in of_each]))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=2e-5, atol=1e-6)
    apart = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert gradients[0].norm() > 0
    assert apart < 1e-3


@torch.no_grad()
def _three_examples(segmenter: Sam | StableSam | HqSam) -> list[tuple[Example, SamEmbedding]]:
    """Return images of odd shapes, of one to three objects, with boxes, points and both."""
    side = SIDE // MASK_STRIDE
    examples = []
    for slot, (size_hw, n) in enumerate([((61, 133), 3), ((119, 47), 1), ((75, 75), 2)]):
        rng = np.random.default_rng(slot)
        image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        embedding = segmenter.encode([image])[0]
        kinds = tuple(
            random_prompts(size_hw, n, points, boxes=boxes)
            for points, boxes in [(0, True), (1, False), (1 + slot, True)]
        )
        targets = torch.zeros(n, side, side, dtype=torch.bool)
        height, width = (extent // MASK_STRIDE for extent in embedding.input_size_hw)
        for target in targets:
            target[:height, :width] = torch.from_numpy(blobs(rng, (height, width)))
        example = Example(
            torch.zeros(3, *embedding.input_size_hw, dtype=torch.uint8),
            size_hw,
            embedding.input_size_hw,
            kinds,
            random_prompts(size_hw, n, 0, boxes=True),
            targets,
            MASK_STRIDE,
            (5, slot),
            str(slot),
        )
        examples.append((example, embedding))
    return examples
