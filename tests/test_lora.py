"""Training low-rank updates of a SAM's decoder, and what their files become."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.segmenters.adapters import ALPHA, RANK, LoraUpdates, build_lora_tuned
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import Recipe, counted, load_recipe, recipe_for, with_data
from samrobust.types import SegmenterOptions
from tests.sam_weights import random_image, random_prompts

SIZE_HW = (91, 133)


def short_recipe() -> Recipe:
    """Return three steps of two images."""
    recipe = with_data(load_recipe("robust"), ["scenes"], "6x64x48", in_root=False)
    phase = replace(recipe.phases[0], images=2, objects=2, kinds=2, warmup=0)
    return counted(recipe_for(replace(recipe, phases=(phase,)), "lora-tuned"), 6)


def answers(sam: Sam) -> Tensor:
    with torch.inference_mode():
        (embedding,) = sam.encode([random_image(SIZE_HW)])
        return sam.logits(embedding, random_prompts(SIZE_HW, 3, 2, boxes=True))[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    recipe = short_recipe()
    trainee = build_trainee(recipe, TraineeOptions())
    before = {name: x.clone() for name, x in trainee.learned.state_dict().items()}
    training = Training(trainee, recipe, open_data(recipe, None), TrainingFolder(folder / "state"))
    list(training.run(workers=0))
    assert all(not torch.equal(x, before[k]) for k, x in trainee.learned.state_dict().items())
    path = folder / "mine.safetensors"
    training.save(path)
    with training.averaged():
        learning = trainee.segmenter()
        assert isinstance(learning, Sam)
        wanted = answers(learning)
    found = answers(build_lora_tuned(SegmenterOptions(checkpoint=path)))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    return path


def test_untrained_it_is_the_sam_that_it_is_made_of() -> None:
    sam = build_sam_nano(SegmenterOptions())
    wanted = answers(sam)
    updates = LoraUpdates(sam)
    torch.testing.assert_close(answers(sam), wanted, rtol=0, atol=0)
    updates.merge()
    torch.testing.assert_close(answers(sam), wanted, rtol=0, atol=0)


def test_a_file_holds_the_updates_alone(trained: Path) -> None:
    state = load_file(trained)
    assert all(RANK in x.shape for x in state.values())
    n_attentions = 2 * 3 + 1  # three in each of two layers, and the last
    assert len(state) == n_attentions * 2 * 2


def test_loaded_weights_are_those_of_the_base_with_the_products_added(trained: Path) -> None:
    base = build_sam_nano(SegmenterOptions()).model.mask_decoder.state_dict()
    tuned = build_lora_tuned(SegmenterOptions(checkpoint=trained))
    state = load_file(trained)
    names = {name.rsplit(".", 2)[0] for name in state}
    for name in names:
        dotted = name.replace("-", ".")
        product = state[f"{name}.1.weight"] @ state[f"{name}.0.weight"]
        wanted = base[f"{dotted}.weight"] + ALPHA / RANK * product
        found = tuned.model.mask_decoder.get_submodule(dotted).weight
        torch.testing.assert_close(found, wanted)
        assert not torch.equal(wanted, base[f"{dotted}.weight"])


def test_it_says_what_it_is(trained: Path) -> None:
    info = build_lora_tuned(SegmenterOptions(checkpoint=trained)).info
    assert info.label == "lora-tuned mine"
    assert info.settings["base"] == "sam-nano"


def test_what_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SegmenterError, match="'samrobust train lora-tuned' writes"):
        build_lora_tuned(SegmenterOptions())
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        build_lora_tuned(SegmenterOptions(checkpoint=tmp_path / "none"))
