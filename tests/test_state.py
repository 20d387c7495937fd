import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samrobust.errors import TrainingError
from samrobust.training.checkpoints import TrainingFolder, TrainingState
from samrobust.training.examples import Pool
from tests.trainings import rectangles, same_tensors


def small_state(identity: str = "this") -> TrainingState:
    """Return a state of a few numbers."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    averages = {name: x.detach() / 2 for name, x in model.named_parameters()}
    return TrainingState(7, model.state_dict(), averages, optimizer.state_dict(), identity)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "a" / "b")
    assert folder.load("this") is None
    state = small_state()
    folder.save(replace(state, step=1))
    folder.save(state)
    found = folder.load("this")
    assert found is not None
    assert (found.step, found.identity) == (7, "this")
    assert same_tensors(found.learned, state.learned)
    assert same_tensors(found.average, state.average)
    assert found.optimizer["param_groups"] == state.optimizer["param_groups"]
    assert [path.name for path in folder.path.iterdir()] == ["state.pt"]  # no part is left


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path)
    path = tmp_path / "state.pt"
    folder.save(small_state())
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        damaged = bytearray(content)
        start = int(rng.integers(len(content)))
        if trial % 2:
            damaged[start:] = b""
        else:
            damaged[start : start + 32] = rng.bytes(32)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(TrainingError):  # and nothing else
            folder.load("this")
    torch.save({"step": 1}, path)
    with pytest.raises(TrainingError, match="is not a training state"):
        folder.load("this")


def test_only_one_training_at_a_time(tmp_path: Path) -> None:
    with TrainingFolder(tmp_path).locked():
        with (
            pytest.raises(TrainingError, match="another process trains here"),
            TrainingFolder(tmp_path).locked(),
        ):
            pass
        with TrainingFolder(tmp_path).locked(rank=1):  # another one of the same team
            pass
    with TrainingFolder(tmp_path).locked():
        pass


def test_an_error_of_what_is_done_under_the_lock_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a photograph"), TrainingFolder(tmp_path).locked():
        raise FileNotFoundError("a photograph")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="/dev/null/x: cannot be created: Not a directory"):
        TrainingFolder(Path("/dev/null/x"))
    folder = TrainingFolder(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        folder.log({"step": 1})
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(TrainingError, match=r"state\.pt: cannot be written: Is a directory"):
        folder.save(small_state())


def test_ids_of_what_was_held_out_are_a_line_each(tmp_path: Path) -> None:
    dataset = rectangles()
    TrainingFolder(tmp_path).keep_held_out([Pool(dataset, ["wide", "high"])])
    assert (tmp_path / "held-out-0-memory.txt").read_text() == "wide\nhigh\n"


def test_rows_of_steps_that_will_be_done_again_are_dropped(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path)
    assert folder.rows() == []
    for step in (20, 40, 60):
        folder.log({"step": step, "total": 1 / step})
    folder.forget_after(40)
    assert folder.rows() == [{"step": 20, "total": 0.05}, {"step": 40, "total": 0.025}]
