"""Files that training writes: weights with their recipe, states to resume from, and a log."""

import contextlib
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save as serialize
from torch import Tensor

from samrobust import __version__
from samrobust.errors import TrainingError
from samrobust.files import write_atomic
from samrobust.segmenters.weights import UNREADABLE
from samrobust.training.examples import Pool
from samrobust.training.recipe import Recipe, describe_recipe

VERSIONED = ("numpy", "safetensors", "segment-anything", "torch")
"""Packages whose versions are stored in a weights file."""


def save_weights(
    path: Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as safetensors, with recipe and versions in the header.

    Args:
        path: of the file.
        state: names and tensors.
        recipe: that they were trained with.
        dtype: of floating-point tensors in the file.
        about: further entries of the header.

    Raises:
        TrainingError: the file cannot be written.
    """
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }
    versions = {"python": platform.python_version(), "samrobust": __version__}
    versions |= {package: version(package) for package in VERSIONED}
    header = {
        "recipe": json.dumps(describe_recipe(recipe), sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        **(about or {}),
    }
    with writing(path):
        write_atomic(path, serialize(tensors, metadata=header))


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training needs to resume exactly.

    Attributes:
        step: number of steps done.
        learned: state dict of the trained module.
        average: moving averages, by parameter name.
        optimizer: state dict of the optimizer.
        identity: hashes of recipe, data and initial weights; a training with others cannot resume.
    """

    step: int
    learned: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    identity: str


class TrainingFolder:
    """The folder of one training: `state.pt`, `metrics.jsonl` and the ids of held-out images.

    Args:
        path: created if it does not exist.

    Raises:
        TrainingError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state, self._log = path / "state.pt", path / "metrics.jsonl"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be created: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self, rank: int = 0) -> Iterator[None]:
        """Keep other trainings out; only the first process of a training locks.

        Raises:
            TrainingError: another process trains here.
        """
        with contextlib.ExitStack() as lock:
            if rank == 0:
                try:
                    lock.enter_context(FileLock(self.path / ".lock").acquire(blocking=False))
                except Timeout as error:
                    raise TrainingError(f"{self.path}: another process trains here") from error
                except OSError as error:
                    reason = f"cannot be written: {error.strerror}"
                    raise TrainingError(f"{self.path}: {reason}") from error
            yield

    def load(self, identity: str) -> TrainingState | None:
        """Return the stored state, None if there is none yet.

        Raises:
            TrainingError: it cannot be read, or belongs to another training.
        """
        if not self._state.exists():
            return None
        try:
            fields = torch.load(self._state, map_location="cpu", weights_only=True)
            state = TrainingState(**fields)
        except UNREADABLE as error:
            raise TrainingError(f"{self._state}: is not a training state; remove it") from error
        if state.identity != identity:
            raise TrainingError(
                f"{self.path}: holds a training with another recipe or other data; "
                "remove it, or choose another --out"
            )
        return state

    def save(self, state: TrainingState) -> None:
        """Replace the stored state, atomically."""
        content = io.BytesIO()
        torch.save(vars(state), content)
        with writing(self._state):
            write_atomic(self._state, content.getvalue())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`.

        Raises:
            TrainingError: it cannot be written.
        """
        with writing(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep_held_out(self, held_out: Sequence[Pool]) -> None:
        """Write the ids of the images that were held out: a file per data set, one id per line."""
        for number, images in enumerate(held_out):
            path = self.path / f"held-out-{number}-{images.dataset.info.name}.txt"
            with writing(path):
                write_atomic(path, "".join(f"{name}\n" for name in images.sample_ids).encode())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl` without incomplete ones, which a kill may leave."""
        rows = []
        if self._log.exists():
            for line in self._log.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def forget_after(self, step: int) -> None:
        """Remove the rows of steps after `step`, which will be repeated."""
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        with writing(self._log):
            write_atomic(self._log, "".join(lines).encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError of writing a file to a TrainingError."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
