"""Training HQ-SAM, and the segmenters that its files become."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from samrobust.errors import CheckpointError, SegmenterError, TrainingError
from samrobust.segmenters.hq_modules import HqDecoder, parts_like_sam
from samrobust.segmenters.hq_sam import HqSam, build_hq_sam
from samrobust.segmenters.nano import WEIGHTS as NANO_WEIGHTS
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.sam_decoder import SINGLE
from samrobust.training import adapters
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.examples import ExampleDraws
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import Recipe, counted, load_recipe, recipe_for, with_data
from samrobust.types import SegmenterOptions
from tests.conftest import Shell
from tests.sam_weights import random_image, random_prompts, small_sam
from tests.trainings import SHORT_PHASE

SIZE_HW = (91, 133)


def short_recipe(*names: str) -> Recipe:
    """Return three steps of two images."""
    recipe = with_data(load_recipe(*names), ["scenes"], "6x64x48", in_root=False)
    phase = replace(recipe.phases[0], epochs=1, images=2, objects=2, kinds=2, warmup=0)
    return counted(recipe_for(replace(recipe, phases=(phase,)), "hq-sam"), 6)


def answers(hq: HqSam) -> Tensor:
    with torch.inference_mode():
        (embedding,) = hq.encode([random_image(SIZE_HW)])
        return hq.logits(embedding, random_prompts(SIZE_HW, 3, 2, boxes=True))[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of parts for SAM-nano, trained for two steps of an image."""
    folder = tmp_path_factory.mktemp("hq")
    recipe = short_recipe("robust")
    short = replace(recipe.phases[0], steps=2, images=1, kinds=1)
    recipe = replace(recipe, phases=(short,))
    trainee = build_trainee(recipe, TraineeOptions())
    data = open_data(recipe, None)
    training = Training(trainee, recipe, data, TrainingFolder(folder / "state"))
    list(training.run(workers=0))
    path = folder / "mine.safetensors"
    training.save(path)
    with training.averaged():
        learning = trainee.segmenter()
        assert isinstance(learning, HqSam)
        wanted = answers(learning)
    loaded = build_hq_sam(SegmenterOptions(checkpoint=path, output="hq"))
    assert torch.equal(answers(loaded), wanted)
    return path


def test_a_file_holds_the_parts_alone_and_says_on_what(trained: Path) -> None:
    with safe_open(trained, framework="pt") as file:
        header = file.metadata()
    nano = build_sam_nano(SegmenterOptions())
    assert header["base-name"] == "sam-nano"
    assert header["base-sha256"] == nano.info.checkpoint_sha256
    assert '"box-noise"' in header["recipe"]
    state = load_file(trained)
    assert len(state) == 25
    assert {name.partition(".")[0] for name in state} == {
        "hf_token",
        "hf_mlp",
        "compress_vit_feat",
        "embedding_encoder",
        "embedding_maskfeature",
    }
    assert trained.stat().st_size < 2**20


def test_a_loaded_file_is_called_by_its_name(trained: Path) -> None:
    info = build_hq_sam(SegmenterOptions(checkpoint=trained)).info
    assert info.label == "hq-sam mine"
    assert info.settings["base"] == "sam-nano"
    assert info.settings["output"] == "sum"
    assert "scenes" in info.trained_on


def test_sam_stays_as_it_was(trained: Path) -> None:
    before = build_sam_nano(SegmenterOptions()).model.state_dict()
    after = build_hq_sam(SegmenterOptions(checkpoint=trained)).base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_base_kind_or_variant_is_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    weights = load_file(NANO_WEIGHTS)
    weights["mask_decoder.iou_token.weight"] += 0.01
    save_file(weights, other)
    with pytest.raises(CheckpointError, match=r"is for sam-nano with SHA-256 .*, not for sam-nano"):
        build_hq_sam(SegmenterOptions(checkpoint=trained, base_checkpoint=other))
    with pytest.raises(CheckpointError, match=r"other\.safetensors: holds no parts of hq-sam"):
        build_hq_sam(SegmenterOptions(checkpoint=other))
    with pytest.raises(SegmenterError, match="says itself what it is for: --variant vit_b"):
        build_hq_sam(SegmenterOptions("vit_b", trained))


@pytest.mark.parametrize("side", [128, 0])
def test_before_training_its_mask_is_sams(side: int) -> None:
    model = small_sam(side) if side else build_sam_nano(SegmenterOptions()).model
    parts = parts_like_sam(model)
    torch.manual_seed(0)
    channels, grid_hw = parts.hf_token.embedding_dim, model.prompt_encoder.image_embedding_size
    features, tokens = torch.randn(1, channels, *grid_hw), torch.randn(3, 4, channels)
    details = torch.zeros(1, channels // 8, *(4 * extent for extent in grid_hw))
    with torch.inference_mode():
        sam, _, hq = HqDecoder(model, parts)(features, details, tokens, masks=SINGLE)
    sure = sam.abs() > 1e-3 * sam.std()
    assert sure.double().mean() > 0.99
    assert torch.equal((sam > 0)[sure], (hq > 0)[sure])
    assert 0 < (sam > 0).double().mean() < 1


def test_before_training_the_encoder_adds_nothing() -> None:
    hq = HqSam(build_sam_nano(SegmenterOptions()))
    untrained = HqSam(hq.base, parts_like_sam(hq.base.model))
    with torch.inference_mode():
        added = [each.encode([random_image(SIZE_HW)])[0].details for each in (hq, untrained)]
    assert added[0].any()
    assert not added[1].any()


@pytest.mark.parametrize("side", [128, 0])
def test_only_the_parts_learn_and_they_learn_the_masks_of_a_step(side: int) -> None:
    recipe = short_recipe("hq-sam")
    base = Sam(small_sam(side), SamOptions(attention="stock")) if side else None
    hq = HqSam(base or build_sam_nano(SegmenterOptions()), output="hq")
    trainee = adapters.TunedTrainee(recipe, hq.base, hq, hq.parts, hq.header)
    draws = ExampleDraws(recipe, open_data(recipe, None).pools, trainee.side, stride=trainee.stride)
    examples = [draws[0, 0]]
    optimizer = torch.optim.AdamW(trainee.learned.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(6):
        loss = trainee.losses(examples, recipe.phases[0])["single"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(x.grad is not None for x in trainee.learned.parameters())
    assert all(x.grad is None for x in hq.base.model.parameters())


def test_qualities_and_candidates_are_not_learned() -> None:
    recipe = short_recipe("hq-sam")
    for name in ("quality", "candidate"):
        wrong = replace(recipe, loss=replace(recipe.loss, **{name: 1.0}))
        with pytest.raises(TrainingError, match="candidate and quality must be 0 for hq-sam"):
            build_trainee(wrong, TraineeOptions())


def test_the_recipe_is_the_published_one() -> None:
    recipe = load_recipe("hq-sam")
    assert [(x.epochs, x.images, x.learning_rate) for x in recipe.phases] == [
        (10, 32, 1e-3),
        (2, 32, 1e-4),
    ]
    images = 44_320
    assert sum(phase.steps for phase in counted(recipe, images).phases) == 12 * 1385
    assert {source.kind for source in recipe.prompts} == {"exact-box", "random-points"}


def test_its_robust_prompts_are_those_of_robust() -> None:
    robust = load_recipe("robust")
    changed = load_recipe("hq-sam", "robust-prompts")
    assert changed.prompts == robust.prompts
    assert changed.phases == load_recipe("hq-sam").phases


def test_train_and_eval_on_the_command_line(shell: Shell) -> None:
    Path("short.toml").write_text(SHORT_PHASE)
    small = ("--data", "scenes", "--split", "6x64x48", "--device", "cpu", "--quiet")
    recipe = ("--recipe", "robust", "--recipe", "short.toml", "--workers", "0")
    done = shell("train", "hq-sam", *recipe, *small, "--out", "own.safetensors")
    assert done.code == 0
    evaluated = shell(
        *("eval", "--protocol", "gt-box", "--dataset", "scenes", "--split", "1x64x48", "--quiet"),
        *("--workers", "0", "--segmenter", "hq-sam", "--segmenter", "hq-sam"),
        *("--checkpoint", "own.safetensors", "--output", "hq", "--output", "sum"),
    )
    assert "output hq" in evaluated.out
    assert "output sum" in evaluated.out
