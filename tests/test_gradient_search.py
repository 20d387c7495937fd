"""The search for the worst box by gradient, and the gradients that it goes by."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from samrobust.degradations.human import SCALE, SHAPE
from samrobust.degradations.search import WorstBox, WorstBoxByGradient, adam_step
from samrobust.errors import ProtocolError, SegmenterError
from samrobust.evaluation.loop import Evaluated, LoopOptions, check_can_run
from samrobust.protocol import load_protocol, protocol_hash, with_gradient
from samrobust.runs.store import read_run
from samrobust.segmenters.baselines import build_ellipse
from samrobust.segmenters.embedding_cache import EmbeddingCache, with_cache
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam, SamEmbedding, SamOptions
from samrobust.segmenters.sam_decoder import CANDIDATES, SINGLE
from samrobust.segmenters.stable_sam import StableSam, build_stable_sam
from samrobust.types import (
    EvalProtocol,
    Instance,
    Prediction,
    PromptBatch,
    Sample,
    SegmenterOptions,
    Selection,
)
from tests.conftest import GrownBox, MemoryDataset, Shell, evaluate_one, rectangle
from tests.sam_weights import random_image, random_parts, small_sam
from tests.test_search import MASKS, one_object

SIDE = 128


Searcher = Any
"""A segmenter that gives gradients, of any family."""


def sam(options: SamOptions | None = None) -> Sam:
    return Sam(small_sam(SIDE, channels=64), options)


def stable_sam() -> StableSam:
    stable = StableSam(sam())
    torch.manual_seed(1)
    for weight in stable.plugins.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return stable


def hq_sam() -> HqSam:
    base = sam()
    return HqSam(base, random_parts(base.model))


FAMILIES: dict[str, Callable[[], Searcher]] = {
    "sam": sam,
    "sam, stock decoder": lambda: sam(SamOptions(decoder="stock")),
    "sam, squash": lambda: sam(SamOptions(frame="squash")),
    "stable-sam": stable_sam,
    "hq-sam": hq_sam,
}


def boxes_of(*boxes: Sequence[float]) -> PromptBatch:
    n = len(boxes)
    return PromptBatch(
        np.array(boxes, np.float32), np.zeros((n, 0, 2), np.float32), np.zeros((n, 0), np.int32)
    )


@torch.inference_mode()
def embedded(segmenter: Searcher, size_hw: tuple[int, int]) -> SamEmbedding:
    found: list[SamEmbedding] = segmenter.encode([random_image(size_hw)])
    return found[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("selection", ["single", "best-quality", "oracle"])
def test_gradients_are_the_finite_differences_of_the_dice_loss(
    family: str, selection: Selection
) -> None:
    size_hw = (64, 64) if "squash" in family else (48, 64)
    target = np.zeros(size_hw, np.bool_)
    target[7:30, 12:51] = True
    boxes = np.array([[12.0, 7, 50, 29], [9.3, 11.6, 40.1, 33.2]])
    segmenter = FAMILIES[family]()
    embedding = embedded(segmenter, size_hw)
    targets = torch.from_numpy(np.stack([target, target]))
    with torch.inference_mode():  # as the loop has it
        (found,) = segmenter.predict_with_gradients(
            embedding, boxes_of(*boxes), targets, [0.0], selection=selection
        )
    exact = in_float64(FAMILIES[family](), embedding)
    for box, gradients in zip(boxes, np.asarray(found.gradients), strict=True):
        differences = optimize.approx_fprime(box, exact, 1e-5, target, selection)
        assert np.abs(differences).max() > 1e-5
        assert gradients == pytest.approx(differences, rel=2e-3, abs=2e-3 * abs(differences).max())


def in_float64(
    segmenter: Searcher, embedding: SamEmbedding
) -> Callable[[np.ndarray, np.ndarray, Selection], float]:
    """Return the loss of a box in pixels of an image of half the size of the input, in float64."""
    base: Searcher = getattr(segmenter, "base", segmenter)
    base.model.double()
    encoder = base.model.prompt_encoder
    encoder.pe_layer.float()  # which makes float32 grids
    if isinstance(segmenter, HqSam):
        segmenter.parts.double()
    tensors: dict[str, Any] = {
        k: v.double() for k, v in vars(embedding).items() if isinstance(v, Tensor)
    }
    precise = replace(embedding, **tensors)
    frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix.double()
    kinds = torch.cat([kind.weight for kind in encoder.point_embeddings[2:]])

    @torch.no_grad()
    def loss(box: np.ndarray, target: np.ndarray, selection: Selection) -> float:
        corners = (2 * torch.from_numpy(box).view(1, 2, 2) + 0.5) / SIDE
        angles = 2 * math.pi * (2 * corners - 1) @ frequencies
        tokens = torch.cat([angles.sin(), angles.cos()], dim=-1) + kinds
        masks = SINGLE if selection == "single" else CANDIDATES
        logits, quality = segmenter.decode(precise, tokens, masks=masks)
        height, width = target.shape[0] // 2, target.shape[1] // 2
        shares = np.zeros((SIDE // 4, SIDE // 4))
        shares[:height, :width] = target.reshape(height, 2, width, 2).mean(axis=(1, 3))
        soft = 1 / (1 + np.exp(-logits[0].numpy()))
        both, areas = (soft * shares).sum(axis=(1, 2)), soft.sum(axis=(1, 2)) + shares.sum()
        losses = 1 - (2 * both + 1) / (areas + 1)
        return float(losses.min() if selection == "oracle" else losses[int(quality[0].argmax())])

    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_with_gradients_are_those_without(family: str) -> None:
    segmenter, prompts = FAMILIES[family](), boxes_of((3, 5, 20, 31), (0, 0, 56, 122), (7, 7, 7, 7))
    embedding = embedded(segmenter, (123, 57))
    targets = torch.ones(3, 123, 57, dtype=torch.bool)
    with torch.inference_mode():
        plain = segmenter.predict_at(embedding, prompts, [0.0, 1.0], multimask=True)
        found = segmenter.predict_with_gradients(
            embedding, prompts, targets, [0.0, 1.0], selection="best-quality"
        )
    for one, other in zip(plain, found, strict=True):
        assert (one.masks != other.masks).float().mean() < 1e-3  # by rounding
        torch.testing.assert_close(one.quality, other.quality)
        assert not other.quality.requires_grad
        assert other.gradients.shape == (3, 4)


def test_a_step_is_that_of_adam() -> None:
    gradients = np.random.default_rng(0).normal(size=(9, 5, 4))
    weight = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=0.3)
    for n, gradient in enumerate(gradients, start=1):
        before = weight.detach().clone()
        weight.grad = torch.from_numpy(gradient)
        adam.step()
        step = (before - weight.detach()) / 0.3
        assert adam_step(gradients[:n]) == pytest.approx(step.numpy(), rel=1e-6)


class Filled(GrownBox):
    """Fills the box; gradients are those of the dice of the box's area and the target's."""

    def __init__(self, most: int = 10_000) -> None:
        super().__init__()
        self.boxes: list[np.ndarray] = []
        self.n_targets: list[int] = []
        self._most = most

    def predict_with_gradients(
        self,
        embedding: tuple[int, int],
        prompts: PromptBatch,
        targets: Tensor,
        thresholds: Sequence[float],
        *,
        selection: Selection,
    ) -> list[Prediction]:
        assert thresholds == (0.0,)
        if len(prompts) > self._most:
            raise torch.OutOfMemoryError
        found = self.predict(embedding, prompts, multimask=selection != "single")
        self.boxes += list(np.asarray(prompts.boxes))
        self.n_targets.append(len({mask.numpy().tobytes() for mask in targets}))
        places = [mask.nonzero().flip(1) for mask in targets]
        ends = torch.tensor([0.0, 0, 1, 1])
        tight = torch.stack([torch.cat([xy.amin(0), xy.amax(0)]) for xy in places]) + ends
        with torch.inference_mode(mode=False), torch.enable_grad():
            tight = tight.clone()
            xyxy = torch.tensor(prompts.boxes, requires_grad=True)
            area = xyxy + ends
            inside = torch.min(area[:, 2:], tight[:, 2:]) - torch.max(area[:, :2], tight[:, :2])
            sizes = [(corners[:, 2:] - corners[:, :2]).prod(1) for corners in (area, tight)]
            loss = 1 - 2 * inside.clamp(min=0).prod(1) / (sizes[0] + sizes[1])
            (gradients,) = torch.autograd.grad(loss.sum(), xyxy)
        return [replace(found, gradients=gradients)]


def by_gradient(selection: Selection = "single") -> EvalProtocol:
    return replace(with_gradient(load_protocol("worst-box")), selection=selection)


def found_by(
    segmenter: Searcher,
    dataset: MemoryDataset,
    protocol: EvalProtocol | None = None,
    *,
    batch_size: int = 16,
) -> Evaluated:
    """Return what evaluating the first image of a data set gives."""
    protocol, options = protocol or by_gradient(), LoopOptions(batch_size)
    first = dataset.ids()[:1]
    (found,) = evaluate_one(segmenter, dataset, protocol, sample_ids=first, options=options)
    assert isinstance(found, Evaluated)
    return found


@pytest.mark.parametrize(
    ("name", "selection"),
    [*((name, "single") for name in MASKS), ("blobs", "best-quality"), ("one pixel", "oracle")],
)
def test_every_box_is_plausible_and_the_worst_is_found(name: str, selection: Selection) -> None:
    mask, segmenter = MASKS[name], Filled()
    found = found_by(segmenter, one_object(mask), by_gradient(selection))
    (row,) = found.searches
    assert found.n_prompts == 1 + 193
    assert row.n_asked == len(segmenter.boxes) == 193
    boxes = torch.from_numpy(np.stack(segmenter.boxes)).double()
    y, x = np.nonzero(mask)
    exact = torch.tensor([[x.min(), y.min(), x.max(), y.max()]], dtype=torch.float64)
    assert torch.equal(boxes[:1], exact)
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor(mask.shape[::-1]) - 1).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    ends = torch.tensor([0.0, 0, 1, 1])
    losses = complete_box_iou_loss(boxes + ends, (exact + ends).expand_as(boxes))
    assert 100 * stats.gamma(SHAPE, scale=SCALE).cdf(losses.max().item()) <= 95 + 1e-3
    assert row.worst <= row.exact <= row.best
    scores = {score.condition: score.value for score in found.scores if score.metric == "iou"}
    assert scores == pytest.approx(
        {"exact-box": row.exact, "worst-box": row.worst, "best-box": row.best}
    )
    again = found_by(Filled(), one_object(mask), by_gradient(selection))
    assert again.searches == found.searches


def searching(search: WorstBoxByGradient) -> EvalProtocol:
    """Return a protocol of one search."""
    base = by_gradient()
    return replace(base, conditions=(replace(base.conditions[1], degradation=search),))


def test_steps_find_a_worse_box_than_the_start(small_dataset: MemoryDataset) -> None:
    few = searching(WorstBoxByGradient(rounds=1, parents=1))
    whole = found_by(Filled(), small_dataset).searches[0]
    start = found_by(Filled(), small_dataset, few).searches[0]
    assert (whole.n_asked, start.n_asked) == (193, 66)
    assert whole.exact == start.exact
    assert whole.worst < start.worst


def test_all_objects_of_an_image_share_batches(small_dataset: MemoryDataset) -> None:
    segmenter = Filled()
    found = found_by(segmenter, small_dataset, batch_size=26)
    assert [row.n_asked for row in found.searches] == [193, 193]
    assert segmenter.n_prompts == [2, *[26] * 5, *[16] * 16]  # exact boxes, starts, steps
    assert segmenter.n_targets[-16:] == [2] * 16
    for batch_size in (1, 1000):
        again = found_by(Filled(), small_dataset, batch_size=batch_size)
        assert again.searches == found.searches
        assert again.scores == found.scores


def test_batches_are_halved_when_memory_runs_out(small_dataset: MemoryDataset) -> None:
    found = found_by(Filled(most=4), small_dataset)
    assert found.halvings == 2
    assert found.searches == found_by(Filled(), small_dataset).searches


@pytest.mark.parametrize("build", [stable_sam, hq_sam, sam])
def test_sams_are_searched(build: Callable[[], Searcher]) -> None:
    image = random_image((41, 67))
    instances = [
        Instance("1", rectangle((41, 67), (5, 3, 50, 30))),
        Instance("dot", rectangle((41, 67), (66, 40, 66, 40))),
    ]
    dataset = MemoryDataset([Sample("a", image, instances)])
    metrics = ("iou", "iou-at-plus-1")
    protocol = replace(searching(WorstBoxByGradient(draws=6, rounds=5, parents=2)), metrics=metrics)
    found, again = (found_by(build(), dataset, protocol) for _ in range(2))
    assert len(found.searches) == 2
    for row in found.searches:
        assert row.n_asked == 17
        assert row.worst <= row.exact <= row.best
    assert found.searches == again.searches
    assert {score.metric for score in found.scores} == {*metrics}


def test_an_embedding_of_the_cache_gives_the_same(tmp_path: Path) -> None:
    nano = build_sam_nano(SegmenterOptions())
    dataset = one_object(MASKS["blobs"])
    cached = with_cache(nano, EmbeddingCache(tmp_path, 2**30))
    assert cached is not nano
    few = searching(WorstBoxByGradient(draws=2, rounds=2, parents=1))
    expected = found_by(nano, dataset, few)
    for _ in range(2):  # new, and from the file
        assert found_by(cached, dataset, few).searches == expected.searches


def test_nothing_of_the_protocol_by_sampling_has_changed() -> None:
    plain, changed = load_protocol("worst-box"), by_gradient()
    assert protocol_hash(plain) == (
        "ffa84bfce7faf8c096ec46cac8cbc02a94050ad51c3dbb96c2d5f2ad422f7cb7"
    )
    assert changed.name == "worst-box-by-gradient"
    assert changed.conditions[0] == plain.conditions[0]
    kinds = [condition.kind for condition in changed.conditions]
    assert kinds == ["exact-box", "worst-box-by-gradient", "best-box-by-gradient"]
    for search in (WorstBox(), WorstBox(percentile=60, draws=17, rounds=4, parents=4, children=2)):
        name, other = search.by_gradient()
        assert name == "worst-box-by-gradient"
        assert (other.n_asked, other.percentile) == (search.n_asked, search.percentile)


def test_what_cannot_go_by_gradient_is_refused() -> None:
    ellipse = build_ellipse(SegmenterOptions())
    with pytest.raises(SegmenterError) as refused:
        check_can_run(ellipse, by_gradient())
    assert str(refused.value) == (
        "protocol worst-box-by-gradient: condition 'worst-box' needs gradients, which segmenter "
        "ellipse does not give; allowed are the SAMs of this package and models with a method "
        "predict_with_gradients; without --gradient any is searched"
    )
    cached = with_cache(build_stable_sam(SegmenterOptions()), EmbeddingCache(Path("unused"), 1))
    check_can_run(cached, by_gradient())
    with pytest.raises(ProtocolError, match="'worst-point' cannot search by gradient; allowed are"):
        with_gradient(load_protocol("worst-point"))
    with pytest.raises(ProtocolError, match="protocol noisy-box has no search that could go by"):
        with_gradient(load_protocol("noisy-box"))
    plain = load_protocol("worst-box")
    long = WorstBox(rounds=1000, parents=1, children=2)
    conditions = (replace(plain.conditions[1], degradation=long),)
    with pytest.raises(ProtocolError, match="'worst-box' by gradient: rounds must be in"):
        with_gradient(replace(plain, conditions=conditions))
    with pytest.raises(ValueError, match="rate must be above 0 and at most 1, got 0"):
        WorstBoxByGradient(rate=0)


def test_the_command_line_runs_it_beside_the_search_by_sampling(shell: Shell, root: Path) -> None:
    command = ("eval", "--protocol", "worst-box", "--dataset", "folder", "--data-root", root)
    for options in ((), ("--gradient",)):
        done = shell(*command, "--segmenter", "stable-sam", "--limit", "1", "--quiet", *options)
        assert done.code == 0
    runs = sorted(
        read_run(folder).manifest.protocol["name"] for folder in Path("results").iterdir()
    )
    assert runs == ["worst-box", "worst-box-by-gradient"]
    shown = shell("report", "results")
    assert "worst-box-by-gradient v1" in shown.out
    assert shell.refuses(*command, "--segmenter", "ellipse", "--gradient").endswith(
        "without --gradient any is searched"
    )
