"""Training a part of a SAM, and the segmenters that its files become."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from samrobust.datasets.coco import build_coco
from samrobust.errors import CheckpointError, SegmenterError, TrainingError
from samrobust.segmenters import SEGMENTERS
from samrobust.segmenters.nano import CHANNELS, SIDE, WEIGHTS, build_sam_nano
from samrobust.segmenters.sam import Sam, SamEmbedding, SamOptions
from samrobust.segmenters.stable_plugins import n_parameters
from samrobust.segmenters.stable_sam import StableSam
from samrobust.training import adapters
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.examples import Example, ExampleDraws
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import Recipe, counted, load_recipe, recipe_for, with_data
from samrobust.training.validation import validate
from samrobust.types import DatasetOptions, PromptBatch, SegmenterOptions
from tests.conftest import Shell
from tests.sam_weights import random_image, random_prompts, small_sam
from tests.trainings import SHORT_PHASE, same_tensors

MODELS = ["stable-sam", "decoder-tuned", "token-tuned"]
MODELS_OF_PACKAGE = ["sam-nano", "stable-sam"]
SMALL = ["--data", "scenes", "--split", "6x64x48", "--device", "cpu", "--quiet", "--workers", "0"]


def recipe_of(model: str, *changes: str) -> Recipe:
    """Return three steps of two images, without validation."""
    recipe = with_data(load_recipe("robust", *changes), ["scenes"], "6x64x48", in_root=False)
    (phase,) = recipe.phases
    short = replace(phase, images=2, objects=2, kinds=2, warmup=0)
    return counted(recipe_for(replace(recipe, phases=(short,)), model), 6)


def examples_of(recipe: Recipe, side: int, stride: int) -> list[Example]:
    draws = ExampleDraws(recipe, open_data(recipe, None).pools, side, stride=stride)
    return [draws[0, slot] for slot in range(2)]


def answers(segmenter: Sam | StableSam) -> tuple[Tensor, Tensor]:
    """Return logits of boxes and of points on one image."""
    with torch.inference_mode():
        (embedding,) = segmenter.encode([random_image((91, 133))])
        boxes, points = (random_prompts((91, 133), 3, n, boxes=not n) for n in (0, 2))
        return segmenter.logits(embedding, boxes)[0], segmenter.logits(embedding, points)[0]


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def load(model: str, path: Path | None, base: Path | None = None) -> Sam | StableSam:
    segmenter = SEGMENTERS.load(model)(SegmenterOptions(checkpoint=path, base_checkpoint=base))
    assert isinstance(segmenter, Sam | StableSam)
    return segmenter


def own_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return SAM's own weights by their own names, without those of plugins."""
    state = {name.replace(".attention.", "."): x for name, x in model.state_dict().items()}
    return {name: x for name, x in state.items() if ".plugin." not in name}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return a file of each model, trained for two steps of an image."""
    folder = tmp_path_factory.mktemp("tuned")
    written = {}
    for model in MODELS:
        recipe = recipe_of(model)
        short = replace(recipe.phases[0], steps=2, images=1, kinds=1)
        recipe = replace(recipe, phases=(short,))
        trainee = build_trainee(recipe, TraineeOptions())
        state = TrainingFolder(folder / f"{model}-training")
        training = Training(trainee, recipe, open_data(recipe, None), state)
        list(training.run(workers=0))
        written[model] = folder / f"{model}.safetensors"
        training.save(written[model])
        with training.averaged():
            learning = trainee.segmenter()
            assert isinstance(learning, Sam | StableSam)
            assert same(answers(learning), answers(load(model, written[model])))
    return written


@pytest.mark.parametrize("model", MODELS)
def test_a_file_holds_what_was_learned_and_says_on_what(
    files: Mapping[str, Path], model: str
) -> None:
    with safe_open(files[model], framework="pt") as file:
        header = file.metadata()
    assert (header["base-name"], header["base-variant"]) == ("sam-nano", "")
    assert header["base-sha256"] == build_sam_nano(SegmenterOptions()).info.checkpoint_sha256
    assert '"part-points"' in header["recipe"]
    assert "segment-anything" in header["versions"]
    counts = {"stable-sam": 22_613, "decoder-tuned": 756_340, "token-tuned": 4 * 128}
    found = load_file(files[model])
    assert sum(x.numel() for x in found.values()) == counts[model]
    if model != "decoder-tuned":
        assert files[model].stat().st_size < 2**20


def distilling(model: str, share: float) -> Recipe:
    """Return a recipe with exact boxes alone, all positions of masks, and cross-entropy alone."""
    recipe = recipe_of(model, "whole-masks")
    boxes = tuple(source for source in recipe.prompts if source.kind == "exact-box")
    loss = replace(recipe.loss, cross_entropy=1.0, dice=0.0, distilled=share)
    return replace(recipe, prompts=boxes, loss=loss)


@pytest.mark.parametrize("model", [*MODELS, "lora-tuned"])
def test_the_base_itself_has_nothing_to_learn_from_its_own_answers(model: str) -> None:
    slopes = []
    for share in (0.0, 1.0):
        trainee = build_trainee(distilling(model, share), TraineeOptions())
        recipe = distilling(model, share)
        examples = examples_of(recipe, trainee.side, trainee.stride)
        (loss,) = trainee.losses(examples, recipe.phases[0]).values()
        loss.backward()  # type: ignore[no-untyped-call]
        slopes.append(
            max(
                float(x.grad.abs().max())
                for x in trainee.learned.parameters()
                if x.grad is not None
            )
        )
    assert slopes[1] < 1e-3 * slopes[0]


def test_distilled_targets_are_mixed_with_the_answers_of_the_base_before_training() -> None:
    recipe = distilling("decoder-tuned", 0.25)
    trainee = build_trainee(recipe, TraineeOptions())
    with torch.no_grad():
        for parameter in trainee.learned.parameters():
            parameter.mul_(1.01)
    examples = examples_of(recipe, trainee.side, trainee.stride)
    (found,) = trainee.losses(examples, recipe.phases[0]).values()
    base, tuned = build_sam_nano(SegmenterOptions()), trainee.segmenter()
    assert isinstance(tuned, Sam)
    wanted = []
    for example in examples:
        square = base.model.preprocess(example.image)[None]
        (embedding,) = base.embed(square, [(example.size_hw, example.input_size_hw)])
        for prompts in example.prompts:
            with torch.no_grad():
                teacher, _ = base.logits(embedding, example.exact)
                student, _ = tuned.logits(embedding, prompts)
            target = 0.75 * example.targets + 0.25 * teacher[:, 0].sigmoid()
            wanted.append(functional.binary_cross_entropy(student[:, 0].sigmoid(), target))
    assert found.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)


def test_each_image_is_read_with_a_share_of_the_next_and_taught_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = distilling("stable-sam", 1.0)
    plain = build_trainee(recipe, TraineeOptions())
    mixing = replace(recipe, augmentation=replace(recipe.augmentation, mix=0.5))
    trainee = build_trainee(mixing, TraineeOptions())
    examples = examples_of(recipe, trainee.side, trainee.stride)
    seen = []

    def keep(
        _segmenter: object, embedded: Iterable[tuple[Example, SamEmbedding]], _: Recipe
    ) -> None:
        seen.append(list(embedded))

    monkeypatch.setattr(adapters, "example_losses", keep)
    for one in (plain, trainee):
        one.losses(examples, recipe.phases[0])
    (first, second), mixed = seen
    for (example, own), (_, other), (mixed_example, found) in (
        (first, second, mixed[0]),
        (second, first, mixed[1]),
    ):
        assert torch.equal(mixed_example.targets, example.targets)
        change, whole = (
            x.features[:, :CHANNELS] - own.features[:, :CHANNELS] for x in (found, other)
        )
        share = float((change * whole).sum() / (whole * whole).sum())
        assert 0 < share < 0.5
        torch.testing.assert_close(change, share * whole, rtol=1e-3, atol=1e-5)
        assert torch.equal(found.features[:, CHANNELS:], own.features[:, CHANNELS:])
    assert not torch.equal(mixed[0][1].features, mixed[1][1].features)


def test_a_model_without_a_base_has_nothing_to_distil_from() -> None:
    recipe = load_recipe("sam-nano")
    recipe = replace(recipe, loss=replace(recipe.loss, distilled=0.5))
    with pytest.raises(TrainingError, match="distilled and mix must be 0 for sam-nano"):
        build_trainee(recipe, TraineeOptions())


@pytest.mark.parametrize("model", MODELS)
def test_only_what_is_tuned_changes(files: Mapping[str, Path], model: str) -> None:
    before = build_sam_nano(SegmenterOptions())
    segmenter = load(model, files[model])
    assert not same(answers(segmenter), answers(before))
    base = segmenter.base if isinstance(segmenter, StableSam) else segmenter
    mine, theirs = own_state(base.model), own_state(before.model)
    changed = {name for name in theirs if not torch.equal(mine[name], theirs[name])}
    assert mine.keys() == theirs.keys()
    if model == "stable-sam":
        assert not changed
    if model == "token-tuned":
        assert changed == {"mask_decoder.mask_tokens.weight"}
    if model == "decoder-tuned":
        assert len(changed) > 50
        assert all(name.startswith("mask_decoder.") for name in changed)


@pytest.mark.parametrize("model", MODELS)
def test_a_loaded_file_is_called_by_its_name(files: Mapping[str, Path], model: str) -> None:
    info = load(model, files[model]).info
    assert info.label == f"{model} {model}"
    assert info.settings["base"] == "sam-nano"
    assert len(info.checkpoint_sha256) == 64


@pytest.mark.parametrize("model", MODELS)
def test_another_base_or_kind_is_refused(
    files: Mapping[str, Path], model: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    weights = load_file(WEIGHTS)
    weights["mask_decoder.iou_token.weight"] += 0.01
    save_file(weights, other)
    with pytest.raises(CheckpointError, match=r"is for sam-nano with SHA-256 .*, not for sam-nano"):
        load(model, files[model], base=other)
    for kind in MODELS:
        if kind != model:
            with pytest.raises(CheckpointError, match=rf"{kind}\.safetensors: holds no "):
                load(model, files[kind])
    with pytest.raises(SegmenterError, match=f"{model} takes no --variant, got vit_b"):
        SEGMENTERS.load(model)(SegmenterOptions("vit_b", files[model]))
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load(model, tmp_path / "none.safetensors")


def test_a_base_that_nobody_knows_is_refused(files: Mapping[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    header = {"kind": "token-tuned-weights", "base-name": "sam-9"}
    save_file(load_file(files["token-tuned"]), path, metadata=header)
    with pytest.raises(CheckpointError, match=r"^p.safetensors: is for 'sam-9'; allowed"):
        load("token-tuned", path)
    save_file(load_file(files["token-tuned"]), path, metadata={**header, "base-name": "sam-nano"})
    with pytest.raises(CheckpointError, match="its header cannot be read: 'base-variant'"):
        load("token-tuned", path)


@pytest.mark.parametrize("model", MODELS[1:])
def test_what_has_no_weights_in_the_package_asks_for_a_file(model: str) -> None:
    with pytest.raises(SegmenterError, match=rf"'samrobust train {model}' writes"):
        load(model, None)


@pytest.mark.parametrize("model", MODELS)
def test_it_learns_the_masks_of_a_step(model: str) -> None:
    recipe = recipe_of(model)
    trainee = build_trainee(recipe, TraineeOptions())
    examples = examples_of(recipe, trainee.side, trainee.stride)
    parameters = [x for x in trainee.learned.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(5):
        loss = trainee.losses(examples[:1], recipe.phases[0])["single"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.998 * losses[0]


def test_the_encoder_learns_nothing_and_embeds_an_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = recipe_of("stable-sam")
    trainee = adapters.stable_sam(recipe, TraineeOptions())
    encoder = trainee._model.image_encoder
    forward = encoder.forward
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return forward(images)

    monkeypatch.setattr(encoder, "forward", counting)
    examples = examples_of(recipe, trainee.side, trainee.stride)
    sum(trainee.losses(examples, recipe.phases[0]).values()).backward()  # type: ignore[union-attr]
    assert seen == [2]
    assert n_parameters(trainee._model.image_encoder) == 0
    assert {name for name, x in trainee._model.named_parameters() if x.grad is not None} <= {
        name for name, _ in trainee._model.named_parameters() if ".plugin." in name
    }


def test_a_real_decoder_learns_with_masks_of_a_quarter_of_the_side() -> None:
    recipe = recipe_of("stable-sam")
    base = Sam(small_sam(128), SamOptions(attention="stock"))
    stable = StableSam(base)
    trainee = adapters.TunedTrainee(recipe, base, stable, stable.plugins, stable.header)
    assert (trainee.side, trainee.stride) == (128, 4)
    examples = examples_of(recipe, 128, 4)
    assert examples[0].targets.shape[1:] == (32, 32)
    loss = trainee.losses(examples, recipe.phases[0])["single"]
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad for x in stable.plugins.parameters() if x.grad is not None]
    assert any(bool(x.any()) for x in gradients)


def test_small_sides_and_drawn_masks_without_images_are_refused() -> None:
    recipe = recipe_of("token-tuned")
    trainee = build_trainee(recipe, TraineeOptions())
    for phase in (
        replace(recipe.phases[0], side=128),
        replace(recipe.phases[0], source="ellipses"),
    ):
        with pytest.raises(TrainingError, match=f"must be tuned on images of its own side, {SIDE}"):
            trainee.losses([], phase)


def test_all_prompts_of_a_batch_count() -> None:
    recipe = recipe_of("token-tuned")
    trainee = build_trainee(recipe, TraineeOptions())
    example, _ = examples_of(recipe, trainee.side, trainee.stride)
    first, second = example.prompts

    def loss(*prompts: PromptBatch) -> float:
        (found,) = trainee.losses([replace(example, prompts=prompts)], recipe.phases[0]).values()
        return found.item()

    assert loss(first, first) != pytest.approx(loss(first, second), rel=1e-3)


def test_train_and_eval_on_the_command_line(shell: Shell) -> None:
    Path("short.toml").write_text(SHORT_PHASE)
    for model in ("stable-sam", "token-tuned"):
        recipe = ("--recipe", "robust", "--recipe", "short.toml")
        result = shell("train", model, *recipe, *SMALL, "--out", f"{model}-own.safetensors")
        assert result.code == 0
        assert Path(f"{model}-own.safetensors").is_file()
    evaluated = shell(
        *("eval", "--protocol", "gt-box", "--dataset", "scenes", "--split", "1x64x48", "--quiet"),
        *("--workers", "0"),
        *("--segmenter", "sam-nano", "--checkpoint", "default"),
        *("--segmenter", "stable-sam", "--checkpoint", "stable-sam-own.safetensors"),
        *("--segmenter", "token-tuned", "--checkpoint", "token-tuned-own.safetensors"),
    )
    assert "own" in evaluated.out
    states = load_file("stable-sam-own.safetensors"), load_file("token-tuned-own.safetensors")
    assert not same_tensors(*states)


def test_the_package_carries_plugins_for_its_own_sam_nano() -> None:
    stable = load("stable-sam", None)
    assert isinstance(stable, StableSam)
    assert stable.info.label == "stable-sam"
    assert stable.info.settings["base"] == "sam-nano"
    assert stable.info.settings["layers"] == "2"
    assert n_parameters(stable.plugins.requires_grad_(True)) == 22_613
    assert sum(file.stat().st_size for file in WEIGHTS.parent.iterdir()) < 12e6


def test_on_photographs_it_regains_some_of_what_bad_boxes_cost(photographs: Path) -> None:
    dataset = build_coco(DatasetOptions(photographs / "pennfudan", "train"))
    recipe = load_recipe("sam-nano", "photographs")
    (held_out,) = (
        each.sample_ids
        for each in open_data(recipe, photographs).held_out
        if each.dataset.info.folder == "pennfudan"
    )
    plain, stable = (
        validate(load(name, None), dataset, held_out[:5]) for name in MODELS_OF_PACKAGE
    )
    assert stable["box-noise-0.4"] > plain["box-noise-0.4"] + 0.01
    assert stable["box"] > plain["box"] - 0.02
