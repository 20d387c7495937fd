import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samrobust.errors import TrainingError
from samrobust.geometry import SMALL_AREA
from samrobust.segmenters.nano import MASK_STRIDE, build_sam_nano, nano_model
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.weights import load_header, load_tensors
from samrobust.training import loop
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.examples import Example, ExampleDraws
from samrobust.training.loop import Progress, Training, learning_rate, process_group
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import DataSource, Phase, Recipe, load_recipe
from samrobust.types import EncoderDtype, SegmenterOptions
from tests.conftest import Shell
from tests.trainings import TINY, open_training, same_tensors, start_command, tiny_recipe

COMMAND = (
    "train",
    "sam-nano",
    "--recipe",
    str(TINY),
    "--device",
    "cpu",
    "--quiet",
    "--workers",
    "0",
)
FLOAT32: EncoderDtype = "float32"
BFLOAT16: EncoderDtype = "bfloat16"
NEVER, ALWAYS = 1e9, -1.0
"""Seconds between two states."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log every third step, and store no state before the end."""
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    monkeypatch.setattr(loop, "SAVE_SECONDS", NEVER)


def without_validation(recipe: Recipe) -> Recipe:
    """Return a recipe that holds nothing out."""
    return replace(recipe, data=(replace(recipe.data[0], held_out=0.0),))


def learned(training: Training) -> dict[str, Tensor]:
    """Return the weights and their moving averages."""
    weights = training._trainee.learned.state_dict()
    return {**weights, **{f"average {name}": x for name, x in training._average.items()}}


def folder_beside(path: Path) -> TrainingFolder:
    """Return the folder in which the command line keeps the training of a weights file."""
    return TrainingFolder(path.with_name(f"{path.stem}-training"))


def steps_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return kind and step of the rows of a log, in their order."""
    return [("validation" if "held_out" in row else "loss", row["step"]) for row in rows]


@dataclass(frozen=True)
class Done:
    """A training that has ended.

    Attributes:
        training: as it ended.
        path: of its weights file.
        folder: beside it.
        progress: all of it.
        weights: at the end.
    """

    training: Training
    path: Path
    folder: TrainingFolder
    progress: list[Progress]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """Return the tiny training, run through in this process as the command line does."""
    path = tmp_path_factory.mktemp("undisturbed") / "sam-nano.safetensors"
    folder = folder_beside(path)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in `start_command`
    with pytest.MonkeyPatch.context() as patch, process_group("cpu"):
        patch.setattr(loop, "LOG_EVERY", 3)
        training = open_training(tiny_recipe(), folder.path)
        progress = list(training.run(workers=0))
        training.save(path)
    torch.set_flush_denormal(False)
    weights = {name: x.clone() for name, x in learned(training).items()}
    yield Done(training, path, folder, progress, weights)
    torch.set_num_threads(n_threads)


def test_the_loss_falls(tmp_path: Path) -> None:
    recipe = without_validation(tiny_recipe())
    places = replace(recipe.phases[0], steps=9, images=2, objects=4)
    progress = list(open_training(replace(recipe, phases=(places,)), tmp_path).run(workers=0))
    assert progress[-1].step == 9
    assert progress[-1].loss["total"] < 0.8 * progress[0].loss["total"]


def test_progress_says_step_phase_losses_and_the_last_validation(undisturbed: Done) -> None:
    progress = undisturbed.progress
    assert [each.step for each in progress] == [3, 6, 9, 12, 15, 16]
    assert [each.phase for each in progress] == ["grounding"] * 2 + ["small"] * 4
    for each in progress:
        assert {"single", "candidate", "quality", "total", "seconds_per_step"} <= set(each.loss)
        assert all(np.isfinite(value) for value in each.loss.values())
    validated = [set(each.held_out) for each in progress]
    labels = {"scenes/12x64x48", "scenes/3x96x64"}
    assert validated == [set(), set(), labels, labels, labels, labels]
    last = undisturbed.progress[-1].held_out["scenes/3x96x64"]
    assert last["objects"] >= 1
    assert 0 <= last["box"] <= 1


def test_the_log_has_what_progress_had(undisturbed: Done) -> None:
    rows = undisturbed.folder.rows()
    assert steps_of(rows) == [
        *(("loss", 3), ("loss", 6), ("validation", 9), ("loss", 9)),
        *(("loss", 12), ("loss", 15), ("validation", 16), ("loss", 16)),
    ]
    losses = [row for row in rows if "total" in row]
    for row, progress in zip(losses, undisturbed.progress, strict=True):
        assert row == {"step": progress.step, "phase": progress.phase, **progress.loss}
    assert rows[-2]["held_out"] == undisturbed.progress[-1].held_out


def test_the_last_validation_is_on_all_held_out_images(undisturbed: Done) -> None:
    first, last = (
        undisturbed.progress[index].held_out["scenes/3x96x64"]["objects"] for index in (2, -1)
    )
    scenes = open_data(tiny_recipe(), None).held_out[1]
    n_objects = [
        sum(instance.mask.sum() >= SMALL_AREA for instance in scenes.dataset[sample_id].instances)
        for sample_id in scenes.sample_ids
    ]
    assert (first, last) == (n_objects[0], sum(n_objects))


def test_weights_are_stored_as_the_moving_average_has_them(
    undisturbed: Done,
) -> None:
    stored = load_tensors(undisturbed.path)
    averages = undisturbed.training._average
    assert averages
    for name, average in averages.items():
        assert torch.equal(stored[name], average.half().float())
    assert same_tensors(learned(undisturbed.training), undisturbed.weights)  # it has its own back
    build_sam_nano(SegmenterOptions(checkpoint=undisturbed.path))


def test_saved_weights_are_as_far_from_the_initial_ones_as_the_recipe_says(tmp_path: Path) -> None:
    places = replace(tiny_recipe().phases[0], steps=2, images=1)
    recipe = replace(without_validation(tiny_recipe()), phases=(places,), average=0.5)
    found = {}
    for share in (0.0, 0.75, 1.0):
        training = open_training(replace(recipe, interpolation=share), tmp_path / str(share))
        list(training.run(workers=0))
        current = {name: x.clone() for name, x in learned(training).items()}
        with training.averaged():
            found[share] = {
                name: x.detach().clone() for name, x in training._trainee.learned.named_parameters()
            }
        assert same_tensors(learned(training), current)
    torch.manual_seed(recipe.seed)
    for name, x in nano_model().named_parameters():
        assert torch.equal(found[0.0][name], x)
        torch.testing.assert_close(found[0.75][name], 0.25 * x + 0.75 * found[1.0][name])


def test_the_average_follows_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    recipe = tiny_recipe()
    recipe = replace(recipe, average=0.25, phases=(replace(recipe.phases[0], steps=4),))
    training = open_training(recipe, tmp_path)
    name = "mask_decoder.iou_token.weight"
    weights = training._trainee.learned.state_dict()[name]
    wanted = weights.clone()
    for progress in training.run(workers=0):
        decay = min(0.25, progress.step / (progress.step + 9))
        wanted = decay * wanted + (1 - decay) * weights
        torch.testing.assert_close(training._average[name], wanted)
    with training.averaged():
        torch.testing.assert_close(weights, wanted)
    assert not torch.allclose(weights, wanted, rtol=1e-6, atol=1e-6)


def test_all_weights_learn_that_can_change_a_mask(undisturbed: Done) -> None:
    state = undisturbed.training._trainee.learned.state_dict()
    fresh = build_trainee(tiny_recipe(), TraineeOptions()).learned.state_dict()
    still = {name for name in state if torch.equal(state[name], fresh[name])}
    of_mask_prompts = {name for name in state if "mask_downscaling" in name}
    of_positions = {name for name in state if "gaussian_matrix" in name}
    assert of_mask_prompts | of_positions <= still
    others = still - of_mask_prompts - of_positions
    assert all(name.endswith("k_proj.bias") for name in others)  # adds the same to all scores


def test_the_learning_rate_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    phase = Phase("a", 1, 1, 1.0, steps=100, last_learning_rate=0.2, warmup=9)
    rates = [learning_rate(phase, step) for step in range(100)]
    cosine = [0.6 + 0.4 * np.cos(np.pi * step / 100) for step in range(100)]
    np.testing.assert_allclose(rates[9:], cosine[9:])
    np.testing.assert_allclose(rates[:9], np.arange(1, 10) / 10 * cosine[:9])
    assert learning_rate(Phase("a", 1, 1, 1.0, steps=5), 0) == 1.0


def test_losses_in_bfloat16_are_near_those_in_float32() -> None:
    recipe = tiny_recipe()
    data = open_data(recipe, None)
    examples = [
        ExampleDraws(recipe, data.pools, 256, stride=MASK_STRIDE)[8, slot] for slot in range(2)
    ]
    wide, narrow = (
        build_trainee(recipe, TraineeOptions(dtype=dtype))
        .losses(examples, recipe.phases[-1])["single"]
        .item()
        for dtype in (FLOAT32, BFLOAT16)
    )
    assert 0 < abs(wide - narrow) < 0.02 * wide


@pytest.mark.parametrize("step", [0, 6, 8, 11])
def test_shares_of_a_step_have_the_mean_loss_and_gradient_of_the_whole(step: int) -> None:
    recipe = replace(tiny_recipe(), corrections=1.0)
    recipe = replace(recipe, phases=tuple(replace(each, images=4) for each in recipe.phases))
    phase, _ = recipe.phase_at(step)
    trainee = build_trainee(recipe, TraineeOptions())
    draws = ExampleDraws(recipe, open_data(recipe, None).pools, trainee.side, stride=trainee.stride)
    examples = [draws[step, slot] for slot in range(4)]

    def gradients(share: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor]:
        losses = trainee.losses(share, phase)
        trainee.learned.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        found = [
            torch.zeros_like(x) if x.grad is None else x.grad for x in trainee.learned.parameters()
        ]
        flat = torch.cat([x.flatten() for x in found])
        return {name: loss.detach() for name, loss in losses.items()}, flat

    losses, gradient = gradients(examples)
    shares = [gradients(examples[rank::2]) for rank in range(2)]
    for name, loss in losses.items():
        mean = (shares[0][0][name] + shares[1][0][name]) / 2
        torch.testing.assert_close(mean, loss, rtol=1e-4, atol=1e-6)
    off = (shares[0][1] + shares[1][1]) / 2 - gradient
    assert off.norm() < 1e-4 * gradient.norm()


def test_a_training_that_stops_and_goes_on_ends_with_the_same_weights(
    undisturbed: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    for stop_at in (6, 12):  # in one phase and in the next
        training = open_training(tiny_recipe(), tmp_path)
        for progress in training.run(workers=0):
            due = progress.step == stop_at - 1
            monkeypatch.setattr(loop, "SAVE_SECONDS", ALWAYS if due else NEVER)
            if progress.step == stop_at:
                break
        state = TrainingFolder(tmp_path).load(training._identity)
        assert state is not None
        assert state.step == stop_at - 1  # the last step was not stored: it is done again
    last = open_training(tiny_recipe(), tmp_path)
    assert [progress.step for progress in last.run(workers=1)] == [12, 13, 14, 15, 16]
    assert same_tensors(learned(last), undisturbed.weights)
    steps = steps_of(TrainingFolder(tmp_path).rows())
    wanted = [("validation", 9), ("validation", 16), *(("loss", step) for step in range(1, 17))]
    assert sorted(steps) == sorted(wanted)


def test_a_finished_training_has_nothing_left_to_do(undisturbed: Done) -> None:
    again = open_training(tiny_recipe(), undisturbed.folder.path)
    assert again.step == 16
    assert list(again.run(workers=0)) == []
    assert same_tensors(learned(again), undisturbed.weights)


def test_a_training_killed_before_its_first_state_logs_no_step_twice(tmp_path: Path) -> None:
    for progress in open_training(tiny_recipe(), tmp_path).run(workers=0):
        if progress.step == 6:
            break
    folder = TrainingFolder(tmp_path)
    assert steps_of(folder.rows()) == [("loss", 3), ("loss", 6)]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "pha')  # as a kill may leave it
    assert steps_of(folder.rows()) == [("loss", 3), ("loss", 6)]
    for _ in open_training(tiny_recipe(), tmp_path).run(workers=0):
        break
    assert steps_of(folder.rows()) == [("loss", 3)]


def test_a_state_of_another_training_is_refused(undisturbed: Done, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    folder = undisturbed.folder
    message = "holds a training with another recipe or other data; remove it, or choose another"
    for other in (
        replace(recipe, seed=6),
        replace(recipe, data=(DataSource("scenes", 1, split="13x64x48", held_out=0.3),)),
    ):
        with pytest.raises(TrainingError, match=message):
            open_training(other, folder.path)
    data = replace(open_data(recipe, None), fingerprint="other files of the same names")
    with pytest.raises(TrainingError, match=message):
        Training(build_trainee(recipe, TraineeOptions()), recipe, data, folder)
    assert open_training(replace(recipe, seed=6), tmp_path).step == 0


def test_a_loss_that_is_not_finite_ends_with_one_line_and_a_readable_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", ALWAYS)
    recipe = tiny_recipe()
    steep = replace(recipe.phases[0], learning_rate=1e30, last_learning_rate=1e30, warmup=0)
    training = open_training(replace(recipe, phases=(steep,)), tmp_path)
    with pytest.raises(TrainingError) as caught:
        list(training.run(workers=0))
    line = str(caught.value)
    assert line.startswith("step 1: the gradient is not finite, on ellipses")
    assert str(tmp_path) in line
    assert "\n" not in line
    state = TrainingFolder(tmp_path).load(training._identity)
    assert state is not None
    assert state.step == 1
    assert all(bool(x.isfinite().all()) for x in state.learned.values())


def test_memory_that_ends_is_one_line_and_other_errors_are_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = open_training(tiny_recipe(), tmp_path)

    def fail_with(error: Exception) -> None:
        def losses(*_: object) -> dict[str, Tensor]:
            raise error

        monkeypatch.setattr(training._trainee, "losses", losses)
        list(training.run(workers=0))

    with pytest.raises(TrainingError) as caught:
        fail_with(torch.OutOfMemoryError("CUDA out of memory."))
    assert str(caught.value) == (
        f"step 0: out of device memory; the last stored state stays in {tmp_path}; "
        "lower images, objects or kinds of phase 'grounding'"
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fail_with(RuntimeError("shapes cannot be multiplied"))


def test_losses_that_not_every_step_has_are_averaged_over_those_that_have_them() -> None:
    log = loop._Log()
    log.add({"single": torch.tensor(1.0)})
    log.add({"single": torch.tensor(2.0), "other": torch.tensor(5.0)})
    row = log.means()
    assert (row["single"], row["other"]) == (1.5, 5)


def stored(folder: TrainingFolder) -> tuple[int, dict[str, Tensor]]:
    """Return the step of a state, and its weights and their averages."""
    state = torch.load(folder.path / "state.pt", weights_only=True)
    averages = {f"average {name}": x for name, x in state["average"].items()}
    return state["step"], {**state["learned"], **averages}


def test_a_killed_training_goes_on_to_the_same_weights(
    undisturbed: Done, tmp_path: Path, shell: Shell
) -> None:
    path = tmp_path / "sam-nano.safetensors"
    folder = folder_beside(path)
    log, state = folder.path / "metrics.jsonl", folder.path / "state.pt"
    killed = start_command(tmp_path, *COMMAND, environment={"COLUMNS": "80"})
    while not (state.exists() and len(log.read_text().splitlines()) >= 2):
        assert killed.exitcode is None
        time.sleep(0.02)
    with pytest.raises(TrainingError, match="another process trains here"), folder.locked():
        pass
    killed.kill()
    killed.join()
    assert not path.exists()
    step, _ = stored(folder)
    assert 1 <= step < 16
    result = shell(*COMMAND)
    assert f"resuming after step {step}" in result.err
    assert same_tensors(stored(folder)[1], undisturbed.weights)
    assert same_tensors(load_tensors(path), load_tensors(undisturbed.path))
    steps = steps_of(folder.rows())
    assert len(set(steps)) == len(steps)
    assert steps[-1] == ("loss", 16)


def test_two_processes_train_what_one_does(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = re.sub(r"steps = \d+", "steps = 2", TINY.read_text(encoding="utf-8"))
    text = re.sub(r"judge_every = \d+", "judge_every = 2", text)
    # rounding grows from step to step, and by a point that is drawn elsewhere at once
    text = re.sub(r"corrections = [\d.]+", "corrections = 0.0", text)
    images = iter("13")  # first the second process has none, then half as many as the first
    text = re.sub(r"^images = \d+", lambda _: f"images = {next(images)}", text, flags=re.MULTILINE)
    recipe = tmp_path / "short.toml"
    recipe.write_text(text, encoding="utf-8")
    command = ("train", "sam-nano", "--recipe", str(recipe), "--device", "cpu", "--workers", "0")
    alone = shell(*command, "--out", "one.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    both |= {"MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in both.items():
        monkeypatch.setenv(name, value)
    bounded = partial(torch.distributed.init_process_group, timeout=timedelta(seconds=120))
    monkeypatch.setattr(torch.distributed, "init_process_group", bounded)
    own = {**both, "RANK": "1", "LOCAL_RANK": "1"}
    two = (*command, "--out", "two.safetensors")
    second = start_command(tmp_path, *two, environment=own)
    first = shell(*two)
    second.join(60)
    assert (first.code, second.exitcode) == (0, 0)
    assert Path("process.txt").read_text() == ""
    trained = []
    for name, result in (("one", alone), ("two", first)):
        assert result.out.count("held-out images") == 1
        folder = folder_beside(tmp_path / f"{name}.safetensors")
        steps = [("validation", 2), ("loss", 3), ("validation", 4), ("loss", 4)]
        assert steps_of(folder.rows()) == steps
        trained.append(stored(folder)[1])
    wanted, weights = trained
    fresh = build_trainee(load_recipe(str(recipe)), TraineeOptions()).learned.state_dict()
    off = torch.cat([(weights[name] - wanted[name]).flatten() for name in fresh])
    way = torch.cat([(fresh[name] - wanted[name]).flatten() for name in fresh])
    assert off.norm() < 1e-3 * way.norm()  # rounding: 1e-5 was found


def test_the_command_prints_a_table_and_writes_weights_log_curve_and_ids(shell: Shell) -> None:
    recipe = re.sub(r"steps = \d", "steps = 1", TINY.read_text(encoding="utf-8"))
    Path("short.toml").write_text(recipe, encoding="utf-8")
    result = shell("train", "sam-nano", "--recipe", "short.toml", "--out", "my/own.safetensors")
    assert result.code == 0
    assert "held-out images: mIoU in %, and Spearman's rho of quality and IoU" in result.out
    assert "scenes/3x96x64" in result.out
    assert "my/own.safetensors: written; log and curve in my/own-training" in result.err
    inside = Path("my/own-training")
    assert {path.name for path in inside.iterdir()} - {".lock"} == {
        *("state.pt", "metrics.jsonl", "curve.png"),
        *("held-out-0-scenes.txt", "held-out-1-scenes.txt"),
    }
    ids = [(inside / f"held-out-{n}-scenes.txt").read_text().split() for n in range(2)]
    assert ids == [list(each.sample_ids) for each in open_data(tiny_recipe(), None).held_out]
    build_sam_nano(SegmenterOptions(checkpoint=Path("my/own.safetensors")))


def test_a_training_goes_on_from_weights_that_another_one_wrote(
    undisturbed: Done, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe(), seed=6)
    trainee = build_trainee(recipe, TraineeOptions(checkpoint=undisturbed.path))
    assert same_tensors(trainee.learned.state_dict(), load_tensors(undisturbed.path))
    trainee.save(tmp_path / "on.safetensors")
    said = f"sam-nano {file_sha256(undisturbed.path)}"
    assert trainee.start == load_header(tmp_path / "on.safetensors")["start"] == said
    assert "start" not in load_header(undisturbed.path)


def test_the_same_command_again_writes_the_same_weights(undisturbed: Done, shell: Shell) -> None:
    before = load_tensors(undisturbed.path)
    undisturbed.path.unlink()
    result = shell(*COMMAND, "--out", undisturbed.path)
    assert result.code == 0
    assert "resuming after step 16" in result.err
    assert same_tensors(load_tensors(undisturbed.path), before)


def test_the_former_name_of_scale_steps_still_works_and_says_the_new_one(shell: Shell) -> None:
    line = shell.refuses("train", "sam-nano", "--scale-steps", "-1")
    result = shell("train", "sam-nano", "--longer", "-1")
    assert result.err.splitlines() == ["--longer is now called --scale-steps", f"error: {line}"]
    assert "--longer" not in shell("train", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sam-nan", "unknown trainable model 'sam-nan'. Did you mean 'sam-nano'?"),
        ("sam-nano --recipe sam-nan", "unknown recipe 'sam-nan'. Did you mean 'sam-nano'?"),
        (f"sam --recipe {TINY}", "recipe 'tiny' trains sam-nano, not sam"),
        (
            "sam --recipe other.toml",
            "unknown trainable model 'sam'. Did you mean 'hq-sam'? Known: decoder-tuned,",
        ),
        (f"sam-nano --recipe {TINY} --base sam", "is trained without a base: it takes no --base"),
        (f"sam-nano --recipe {TINY} --split val", "--split val: needs --data"),
        (
            "stable-sam --data scenes --split 2x64x48 --base sama",
            "unknown base 'sama'. Did you mean",
        ),
        ("stable-sam --data scenes --split 2x64x48 --variant x", "sam-nano takes no --variant"),
        ("stable-sam --data scenes --split 1x64x48 --data-root x", "scenes takes no --data-root"),
        (
            "decoder-tuned --recipe robust --recipe decay.toml",
            "weight_decay must be 0 for a part of",
        ),
        ("sam-nano --recipe none.toml", "none.toml: cannot be read: No such file"),
        (
            "sam-nano --recipe sam-nano --recipe photographs",
            "needs --data-root: the folder that contains coco128, coco_more, bsds500,",
        ),
        (f"sam-nano --recipe {TINY} --dtype float16", "dtype must be float32 or bfloat16"),
        (f"sam-nano --recipe {TINY} --dtype float64", "unknown dtype 'float64'"),
        (f"sam-nano --recipe {TINY} --device tpu", "unknown device 'tpu'"),
        (f"sam-nano --recipe {TINY} --workers -1", "--workers must be at least 0, got -1"),
        (
            f"sam-nano --recipe {TINY} --out /dev/null/x",
            "/dev/null: cannot be written",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(shell: Shell, arguments: str, message: str) -> None:
    text = TINY.read_text().replace('models = ["sam-nano"]', 'models = ["sam"]')
    Path("other.toml").write_text(text)
    Path("decay.toml").write_text("weight_decay = 0.05")
    assert message in shell.refuses("train", *arguments.split())
    assert not list(Path().glob("*.safetensors"))
