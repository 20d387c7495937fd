"""Runs on disk: `manifest.json`, `scores/part-*.parquet`, `failures.json`; a kill loses no part.

A part is written beside its place and moved there whole, and holds all scores of each of its
images; so an image is either stored or not, and the same command goes on where the last one ended.
"""

import dataclasses
import hashlib
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from samrobust.errors import RunError
from samrobust.types import DatasetInfo, RunManifest, Score, SegmenterInfo
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
_MANIFEST, _SCORES, _FAILURES, _LOCK = "manifest.json", "scores", "failures.json", ".lock"
_PART = re.compile(r"part-(\d{5,})\.parquet")
_NOT_IDENTITY = ("command", "created", "reported")


@dataclasses.dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        folder: where it lies.
        manifest: what it is.
        scores: one row a score, columns as in `SCHEMA`.
        failures: sample id -> why it could not be evaluated.
    """

    folder: Path
    manifest: RunManifest
    scores: pd.DataFrame
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
        self.done: frozenset[str] = frozenset(_stored_ids(self.folder))
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

    def write(self, scores: Sequence[Score]) -> None:
        """Store all scores of one image; they reach the disk with the next part."""
        self._rows.extend(scores)
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if late or len(self._rows) >= FLUSH_ROWS:
            self._flush()

    def fail(self, sample_id: str, reason: str) -> None:
        """Record that an image could not be evaluated; the same command tries it again."""
        self._failures[sample_id] = reason
        _write_json(self.folder / _FAILURES, self._failures)

    def _flush(self) -> None:
        if self._rows:
            columns = {
                name: pa.array([getattr(row, name) for row in self._rows], SCHEMA.field(name).type)
                for name in SCHEMA.names
            }
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns, schema=SCHEMA), buffer)
            number = max((int(part.stem[5:]) for part in _parts(self.folder)), default=-1) + 1
            part = self.folder / _SCORES / f"part-{number:05d}.parquet"
            _write_whole(part, buffer.getvalue())
        self._rows = []
        self._flushed = time.monotonic()


def run_name(manifest: RunManifest) -> str:
    """Return the folder name of a run: what it is, then a hash of all that can change a number.

    Not in the hash: when and how it was started, the published values shown beside it, and the name
    of the folder that the data lie in.
    """
    identity = {k: v for k, v in _manifest_to_json(manifest).items() if k not in _NOT_IDENTITY}
    identity["dataset"].pop("folder")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [manifest.protocol["name"], manifest.dataset.key, manifest.segmenter.label, digest]
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def read_run(folder: Path) -> Run:
    """Return a stored run, finished or not.

    Raises:
        RunError: the folder is no run, or a file of it cannot be read.
    """
    manifest = _manifest_from_json(folder / _MANIFEST)
    tables = [_read_part(part, SCHEMA.names) for part in _parts(folder)]
    scores = pa.concat_tables([SCHEMA.empty_table(), *tables]).to_pandas()
    failures = _read_json(folder / _FAILURES) if (folder / _FAILURES).exists() else {}
    stored = set(scores["sample_id"].unique())
    return Run(folder, manifest, scores, {k: v for k, v in failures.items() if k not in stored})


def _stored_ids(folder: Path) -> set[str]:
    return {
        sample_id
        for part in _parts(folder)
        for sample_id in _read_part(part, ["sample_id"])["sample_id"].unique().to_pylist()
    }


def _parts(folder: Path) -> list[Path]:
    try:
        files = sorted((folder / _SCORES).iterdir())
    except OSError as error:
        raise RunError(f"{folder / _SCORES}: cannot be read: {error.strerror}") from error
    return [file for file in files if _PART.fullmatch(file.name)]


def _read_part(part: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(part, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{part}: cannot be read, perhaps it was cut off; delete it and give the same command "
            "again, which evaluates its images anew"
        ) from error


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
