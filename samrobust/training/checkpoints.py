"""What training writes: weights with their recipe, states to resume from, and a log."""

import contextlib
import dataclasses
import io
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
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
from samrobust.training.data import HeldOut
from samrobust.training.recipe import Recipe, describe_recipe

VERSIONED = ("numpy", "safetensors", "segment-anything", "torch")


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
        recipe: that made them.
        dtype: of floating-point tensors in the file.
        about: more for the header.

    Raises:
        TrainingError: it cannot be written.
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
    try:
        write_atomic(path, serialize(tensors, metadata=header))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


_STATE, _LOG, _LOCK = "state.pt", "metrics.jsonl", ".lock"


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        step: steps done.
        learned: state dict of what learns.
        average: moving averages, by parameter name.
        optimizer: its state dict.
        identity: a hash of the recipe and the data: another training does not go on from here.
    """

    step: int
    learned: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    identity: str


class TrainingFolder:
    """The folder of one training.

    Args:
        path: made if it is not there.

    Raises:
        TrainingError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be made: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self, rank: int = 0) -> Iterator[None]:
        """Keep other trainings out; only the first process of a team locks.

        Raises:
            TrainingError: another process trains here.
        """
        if rank:
            yield
            return
        try:
            lock = FileLock(self.path / _LOCK).acquire(blocking=False)
        except Timeout as error:
            raise TrainingError(f"{self.path}: another process trains here") from error
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}") from error
        with lock:
            yield

    def load(self, identity: str) -> TrainingState | None:
        """Return the stored state, None where there is none yet.

        Raises:
            TrainingError: it cannot be read, or belongs to another training.
        """
        path = self.path / _STATE
        if not path.exists():
            return None
        try:
            fields = torch.load(path, map_location="cpu", weights_only=True)
            state = TrainingState(**fields)
        except UNREADABLE as error:
            raise TrainingError(f"{path}: is no state of a training: remove it") from error
        if state.identity != identity:
            raise TrainingError(
                f"{self.path}: holds a training with another recipe or other data; "
                "remove it, or choose another --out"
            )
        return state

    def save(self, state: TrainingState) -> None:
        """Store a state in place of the last one, whole or not at all."""
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        content = io.BytesIO()
        torch.save(fields, content)
        _write_atomic(self.path / _STATE, content.getvalue())

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to `metrics.jsonl`.

        Raises:
            TrainingError: it cannot be written.
        """
        path = self.path / _LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error

    def keep_held_out(self, held_out: Sequence[HeldOut]) -> None:
        """Write the ids of the images that were held out, one a line, a file a data set."""
        for number, each in enumerate(held_out):
            name = f"held-out-{number}-{each.dataset.info.name}.txt"
            _write_atomic(self.path / name, "".join(f"{x}\n" for x in each.sample_ids).encode())

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `metrics.jsonl`; one that a kill cut short is left out."""
        path = self.path / _LOG
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that will be done again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        content = "".join(json.dumps(row) + "\n" for row in kept)
        _write_atomic(self.path / _LOG, content.encode())


def _write_atomic(path: Path, content: bytes) -> None:
    try:
        write_atomic(path, content)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
