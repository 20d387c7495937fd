"""Runs on disk: `manifest.json`, tables in parts, `failures.json`; a kill loses no part.

The tables are `scores/`, `objects/` and, where masks are kept, `masks/` and `photographs/`. A part
of the scores is written last and holds all scores of each of its images; so an image is either
stored or not, and the same command goes on where the last one ended. What other tables then hold
twice counts once.
"""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from samrobust.errors import RunError
from samrobust.parts import append_part, each_part, read_parts
from samrobust.types import (
    DatasetInfo,
    Keep,
    Kept,
    MaskRow,
    ObjectRow,
    PhotographRow,
    RunManifest,
    Score,
    SegmenterInfo,
)
from samrobust.whole import write_whole

FORMAT = 1
FLUSH_SECONDS = 5.0
"""At most this much work is done again after a kill."""
FLUSH_ROWS = 200_000
"""Rows kept in memory at most."""
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("instance_id", pa.string()),
        ("condition", pa.string()),
        ("trial", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float32()),
        ("prompt_hash", pa.string()),
    ]
)
OBJECTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("instance_id", pa.string()),
        ("category", pa.string()),
        ("area", pa.int64()),
        ("perimeter", pa.float64()),
    ]
)
MASKS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("instance_id", pa.string()),
        ("condition", pa.string()),
        ("trial", pa.int32()),
        ("counts", pa.binary()),
        ("box", pa.list_(pa.float32())),
        ("points", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
    ]
)
PHOTOGRAPHS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("jpeg", pa.binary()),
        ("kept", pa.string()),
    ]
)
_MANIFEST, _SCORES, _FAILURES, _LOCK = "manifest.json", "scores", "failures.json", ".lock"
_OBJECTS, _MASKS, _PHOTOGRAPHS = "objects", "masks", "photographs"
_HASH = "prompt_hash"
_TEXTS = [field.name for field in SCHEMA if field.type == pa.string()]
_IN_MEMORY = pa.schema(
    [
        (
            name,
            pa.dictionary(pa.int32(), pa.string()) if name in _TEXTS else SCHEMA.field(name).type,
        )
        for name in SCHEMA.names
    ]
).set(SCHEMA.get_field_index(_HASH), pa.field(_HASH, pa.uint64()))
_NOT_IDENTITY = ("command", "created", "reported")


@dataclasses.dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        folder: where it lies.
        manifest: what it is.
        scores: one row a score, columns as in `SCHEMA`: texts as categories, and `prompt_hash` as a
            uint64 made of its text: equal where that is, so that 10^8 rows fit into memory.
        objects: one row an object, columns as in `OBJECTS`; runs of earlier versions have none.
        failures: sample id -> why it could not be evaluated.
    """

    folder: Path
    manifest: RunManifest
    scores: pd.DataFrame
    objects: pd.DataFrame
    failures: dict[str, str]

    @property
    def n_missing(self) -> int:
        """Return the number of images that have neither scores nor a recorded failure."""
        return self.manifest.n_samples - self.scores["sample_id"].nunique() - len(self.failures)


class RunWriter:
    """Write one run, or go on with it; use as a context manager.

    Args:
        results: the folder of all runs.
        manifest: what is run; the run's folder is named after it.

    Raises:
        RunError: the folder cannot be written, is in use by another process, or holds a part that
            cannot be read.
    """

    def __init__(self, results: Path, manifest: RunManifest) -> None:
        self.folder = results / run_name(manifest)
        self._rows: list[Score] = []
        self._objects: list[ObjectRow] = []
        self._masks: list[MaskRow] = []
        self._photographs: list[PhotographRow] = []
        self._flushed = time.monotonic()
        try:
            (self.folder / _SCORES).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / _LOCK, timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise RunError(f"{self.folder}: another process is writing this run") from error
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from error
        for leftover in self.folder.rglob("*.tmp"):
            leftover.unlink()
        if (self.folder / _MANIFEST).exists():
            _manifest_from_json(self.folder / _MANIFEST)
        else:
            _write_json(self.folder / _MANIFEST, _manifest_to_json(manifest))
        self.done: frozenset[str] = _ids(self.folder / _SCORES)
        self._failures: dict[str, str] = {}

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is still in memory, also when the run was interrupted."""
        try:
            if not isinstance(error, RunError):
                self._flush()
        finally:
            self._lock.release()

    def masks_kept(self, keep: Keep) -> frozenset[str]:
        """Return the images of which as many masks as asked are stored already."""
        table = read_parts(self.folder / _PHOTOGRAPHS, PHOTOGRAPHS, ["sample_id", "kept"])
        enough = {"all", keep}
        pairs = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        return frozenset(sample_id for sample_id, kept in pairs if kept in enough)

    def write(
        self,
        sample_id: str,
        scores: Sequence[Score],
        *,
        objects: Sequence[ObjectRow] = (),
        kept: Kept | None = None,
    ) -> None:
        """Store what one image gave; it reaches the disk with the next parts.

        Scores of an image that had some before are not stored again.
        """
        if sample_id not in self.done:
            self._rows.extend(scores)
        self._objects.extend(objects)
        if kept is not None:
            self._masks.extend(kept.masks)
            self._photographs.append(kept.photograph)
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if late or len(self._rows) >= FLUSH_ROWS:
            self._flush()

    def fail(self, sample_id: str, reason: str) -> None:
        """Record that an image could not be evaluated; the same command tries it again."""
        self._failures[sample_id] = reason
        _write_json(self.folder / _FAILURES, self._failures)

    def _flush(self) -> None:
        append_part(self.folder / _OBJECTS, OBJECTS, self._objects)
        append_part(self.folder / _MASKS, MASKS, self._masks)
        append_part(self.folder / _PHOTOGRAPHS, PHOTOGRAPHS, self._photographs)
        append_part(self.folder / _SCORES, SCHEMA, self._rows)
        self._rows, self._objects, self._masks, self._photographs = [], [], [], []
        self._flushed = time.monotonic()


def run_name(manifest: RunManifest) -> str:
    """Return the folder name of a run: what it is, then a hash of all that can change a number.

    Not in the hash: when and how it was started, the published values shown beside it, the name of
    the folder that the data lie in, and what the segmenter was trained on, which its weights say.
    """
    identity = {k: v for k, v in _manifest_to_json(manifest).items() if k not in _NOT_IDENTITY}
    identity["dataset"].pop("folder")
    identity["segmenter"].pop("trained_on")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [manifest.protocol["name"], manifest.dataset.key, manifest.segmenter.label, digest]
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def read_run(folder: Path) -> Run:
    """Return a stored run, finished or not.

    Raises:
        RunError: the folder is no run, or a file of it cannot be read.
    """
    manifest = _manifest_from_json(folder / _MANIFEST)
    if not (folder / _SCORES).is_dir():
        raise RunError(f"{folder / _SCORES}: there is no such folder")
    scores = _read_scores(folder / _SCORES)
    objects = _once(read_parts(folder / _OBJECTS, OBJECTS), ["sample_id", "instance_id"])
    failures = _read_json(folder / _FAILURES) if (folder / _FAILURES).exists() else {}
    stored = set(scores["sample_id"].unique())
    left = {k: v for k, v in failures.items() if k not in stored}
    return Run(folder, manifest, scores, objects, left)


def read_masks(folder: Path) -> pd.DataFrame:
    """Return the kept masks of a run, one a row, columns as in `MASKS`; none where none are kept.

    Raises:
        RunError: a file of it cannot be read.
    """
    key = ["sample_id", "instance_id", "condition", "trial"]
    return _once(read_parts(folder / _MASKS, MASKS), key)


def read_photographs(folder: Path) -> pd.DataFrame:
    """Return the photographs under the kept masks of a run, columns as in `PHOTOGRAPHS`.

    Raises:
        RunError: a file of it cannot be read.
    """
    return _once(read_parts(folder / _PHOTOGRAPHS, PHOTOGRAPHS), ["sample_id"])


def _read_scores(folder: Path) -> pd.DataFrame:
    parts = [_numbered(part) for part in each_part(folder, SCHEMA.names, coded=_TEXTS)]
    table = pa.concat_tables([_IN_MEMORY.empty_table(), *parts]).unify_dictionaries()
    del parts
    scores: pd.DataFrame = table.to_pandas(self_destruct=True, split_blocks=True)
    return scores


def _numbered(part: pa.Table) -> pa.Table:
    """Return a part of the scores as it is held in memory: with a number for each prompt's hash."""
    place = part.schema.get_field_index(_HASH)
    numbers = [
        pd.util.hash_array(chunk.dictionary.to_numpy(zero_copy_only=False), categorize=False)[
            chunk.indices.to_numpy()
        ]
        for chunk in part[_HASH].chunks
    ]
    return part.set_column(place, _HASH, pa.chunked_array(numbers, pa.uint64()))


def _once(table: pa.Table, key: list[str]) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    return rows.drop_duplicates(key, ignore_index=True)


def _ids(folder: Path) -> frozenset[str]:
    """Return the images that a table is about, one part in memory at a time."""
    name = "sample_id"
    parts = each_part(folder, [name], coded=[name])
    return frozenset(key for part in parts for key in part[name].unique().to_pylist())


def _manifest_to_json(manifest: RunManifest) -> dict[str, Any]:
    plain = dataclasses.asdict(manifest)
    plain["segmenter"]["prompts"] = sorted(manifest.segmenter.prompts)
    return {"format": FORMAT, **plain}


def _manifest_from_json(path: Path) -> RunManifest:
    plain = _read_json(path)
    try:
        if plain.pop("format") != FORMAT:
            raise RunError(f"{path}: is of another format than {FORMAT}")
        segmenter = plain.pop("segmenter")
        segmenter["prompts"] = frozenset(segmenter["prompts"])
        segmenter["trained_on"] = tuple(segmenter.get("trained_on", ()))
        dataset = plain.pop("dataset")
        dataset["group_members"] = tuple(dataset["group_members"])
        return RunManifest(
            segmenter=SegmenterInfo(**segmenter), dataset=DatasetInfo(**dataset), **plain
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is not the manifest of a run: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise RunError(f"{path}: is not a JSON object")
    return plain


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    _write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _write_whole(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; what was stored before is kept, "
            "the same command goes on from there"
        ) from error
