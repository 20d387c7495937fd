"""Runs on disk: Parquet tables in parts, appended as images are scored; a kill loses no part.

The tables are `scores/`, `objects/` and, where masks are kept, `masks/` and `photographs/`. A part
of the scores is written last and holds all scores of each of its images; so an image is either
stored or not, and rerunning the same command resumes. What other tables hold twice counts once.
"""

import dataclasses
import io
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from samrobust.errors import RunError
from samrobust.files import write_whole
from samrobust.runs.manifest import (
    MANIFEST,
    Keep,
    Kept,
    MaskRow,
    ObjectRow,
    PhotographRow,
    RunManifest,
    Score,
    check_failures,
    check_objects,
    check_photographs,
    check_scores,
    read_json,
    read_manifest,
    run_name,
    write_json,
    write_manifest,
)
from samrobust.runs.sharing import WHOLE, Shard, claim, starting

MOST_ROWS = 5_000_000
"""Of a part: some times as many as a writer keeps in memory. Far more fit into a file of a few
bytes, where all are alike."""
MOST_BYTES = 2**32
"""Of a part, unpacked."""
_PART = re.compile(r"part-(?:\w+-)?(\d{5,})\.parquet")


def read_parts(folder: Path, schema: pa.Schema, columns: Sequence[str] = ()) -> pa.Table:
    """Return all parts of a table after each other, or some columns of it.

    Args:
        folder: of the parts; an empty table where there is none.
        schema: of the table.
        columns: all of the schema's where none is named.

    Raises:
        RunError: the folder or a part cannot be read.
    """
    names = list(columns or schema.names)
    wanted = pa.schema([schema.field(name) for name in names])
    return pa.concat_tables([wanted.empty_table(), *each_part(folder, wanted)])


def each_part(folder: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the parts of a table in their order; none where there is no folder.

    Args:
        folder: of the parts.
        schema: of the columns that are read; of a dictionary type, a text that repeats is held
            once.

    Raises:
        RunError: the folder or a part cannot be read.
    """
    for part in _parts(folder) if folder.exists() else []:
        yield _read_part(part, schema)


def append_part(
    folder: Path, schema: pa.Schema, rows: Sequence[object], *, label: str = ""
) -> None:
    """Write rows, objects with an attribute a column, as the next part; nothing where none are.

    Args:
        folder: of the parts, made if it is not there.
        schema: of the table.
        rows: to be written.
        label: letters and digits of this process, "" where it writes the table alone: no two
            processes with the same one may write a table at once.

    Raises:
        RunError: they cannot be written; no part is harmed.
    """
    if not rows:
        return
    columns = {
        name: pa.array([getattr(row, name) for row in rows], schema.field(name).type)
        for name in schema.names
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), buffer)
    try:
        folder.mkdir(exist_ok=True)
        number = max((int(part.stem.rpartition("-")[2]) for part in _parts(folder)), default=-1) + 1
        path = folder / f"part-{label}{'-' if label else ''}{number:05d}.parquet"
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; what was stored before is kept, "
            "the same command goes on from there"
        ) from error


def _parts(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder}: cannot be read: {error.strerror}") from error
    return [file for file in files if _PART.fullmatch(file.name)]


def _read_part(part: Path, wanted: pa.Schema) -> pa.Table:
    try:
        coded = [field.name for field in wanted if pa.types.is_dictionary(field.type)]
        with pq.ParquetFile(part, read_dictionary=coded) as file:
            about = file.metadata
            groups = (about.row_group(group) for group in range(about.num_row_groups))
            n_bytes = sum(group.total_byte_size for group in groups)
            if about.num_rows > MOST_ROWS or n_bytes > MOST_BYTES:
                raise RunError(f"{part}: holds more than a part can: {about.num_rows} rows")
            table = file.read(columns=wanted.names).cast(wanted)
            table.validate(full=True)
            return table
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise RunError(
            f"{part}: cannot be read, perhaps it was cut off; delete it and give the same command "
            "again, which evaluates its images anew"
        ) from error


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
"""Of the scores as they are stored: a row is a value of a metric."""
_HASH = "prompt_hash"
_CODE = pa.dictionary(pa.int32(), pa.string())
"""A text that repeats, held once."""
_CODED = pa.schema(
    [(field.name, _CODE if field.type == pa.string() else field.type) for field in SCHEMA]
)
_IN_MEMORY = _CODED.set(SCHEMA.get_field_index(_HASH), pa.field(_HASH, pa.uint64()))


def read_scores(folder: Path) -> pa.Table:
    """Return all parts of the scores, texts as codes, with a number for each prompt's hash.

    Raises:
        RunError: the folder or a part cannot be read.
        ValueError: a prompt has no hash.
    """
    parts = [_numbered(part) for part in each_part(folder, _CODED)]
    return pa.concat_tables([_IN_MEMORY.empty_table(), *parts]).unify_dictionaries()


def held_in_memory(scores: pa.Table) -> pd.DataFrame:
    """Return scores from `read_scores` as a data frame; the table is used up.

    Texts are categories in alphabetical order, whatever the order of the rows.
    """
    held: pd.DataFrame = scores.to_pandas(self_destruct=True, split_blocks=True)
    for name in held.columns[held.dtypes == "category"]:
        held[name] = held[name].cat.reorder_categories(sorted(held[name].cat.categories))
    return held


def images_of(folder: Path) -> frozenset[str]:
    """Return the images that a table has rows of, with one part in memory at a time.

    Raises:
        RunError: the folder or a part cannot be read.
    """
    wanted = pa.schema([("sample_id", _CODE)])
    parts = each_part(folder, wanted)
    return frozenset(key for part in parts for key in part["sample_id"].unique().to_pylist())


def _numbered(part: pa.Table) -> pa.Table:
    """Return a part of the scores as it is held in memory."""
    if part[_HASH].null_count:
        raise ValueError(f"the column {_HASH} has gaps")
    numbers = [
        pd.util.hash_array(chunk.dictionary.to_numpy(zero_copy_only=False), categorize=False)[
            chunk.indices.to_numpy()
        ]
        for chunk in part[_HASH].chunks
    ]
    place = part.schema.get_field_index(_HASH)
    return part.set_column(place, _HASH, pa.chunked_array(numbers, pa.uint64()))


FLUSH_SECONDS = 5.0
"""So much work is done again after a kill, and what a part takes to be written."""
FLUSH_ROWS = 200_000
"""Rows kept in memory at most."""
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
_SCORES, _FAILURES, _LEFT_OUT = "scores", "failures", "left-out"
_OBJECTS, _MASKS, _PHOTOGRAPHS = "objects", "masks", "photographs"
_Table = tuple[str, pa.Schema, Sequence[object]]
"""Folder, schema and new rows of a table."""


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
        left_out: sample id -> why some of its objects, or all, had nothing to score.
    """

    folder: Path
    manifest: RunManifest
    scores: pd.DataFrame
    objects: pd.DataFrame
    failures: dict[str, str]
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def n_missing(self) -> int:
        """Return the number of images that have neither scores nor a recorded failure."""
        known = {*self.scores["sample_id"].unique(), *self.failures, *self.left_out}
        return self.manifest.n_samples - len(known)


class RunWriter:
    """Write one run or a shard of it, or go on with it; use as a context manager.

    Parts are written by a thread, one after the other, so that no image waits for the disk. What
    hinders one is raised when the next is due, or at the end.

    Args:
        results: the folder of all runs.
        manifest: what is run; the run's folder is named after it.
        shard: what this process writes; other processes may write others of as many at once.

    Raises:
        RunError: the folder cannot be written, is in use by another process, or holds a part that
            cannot be read.
    """

    def __init__(self, results: Path, manifest: RunManifest, shard: Shard = WHOLE) -> None:
        self.folder = results / run_name(manifest)
        self._label = shard.label
        self._rows: list[Score] = []
        self._objects: list[ObjectRow] = []
        self._masks: list[MaskRow] = []
        self._photographs: list[PhotographRow] = []
        self._flushed = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        try:
            (self.folder / _SCORES).mkdir(parents=True, exist_ok=True)
            with starting(self.folder):
                self._lock = claim(self.folder, shard)
                if (self.folder / MANIFEST).exists():
                    read_manifest(self.folder)
                else:
                    write_manifest(self.folder, manifest)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written: {error.strerror}") from error
        self._scored = stored_images(self.folder)
        self.done: frozenset[str] = self._scored
        if (self.folder / _OBJECTS).is_dir():
            self.done &= images_of(self.folder / _OBJECTS)
        self._failures: dict[str, str] = {}
        self._left_out: dict[str, list[str]] = {}

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
                self._wait()
        finally:
            self._thread.shutdown()
            self._lock.release()

    def masks_kept(self, keep: Keep) -> frozenset[str]:
        """Return the images of which as many masks as asked are stored already."""
        table = read_parts(self.folder / _PHOTOGRAPHS, PHOTOGRAPHS, ["sample_id", "kept"])
        enough = {"all", keep}
        pairs = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
        with_masks = images_of(self.folder / _MASKS)
        return frozenset(name for name, kept in pairs if kept in enough and name in with_masks)

    def note_halvings(self, halvings: int) -> None:
        """Say in the manifest how often memory ended; the most of all times that the run went on.

        Raises:
            RunError: the manifest cannot be read or written.
        """
        with starting(self.folder):
            manifest = read_manifest(self.folder)
            if halvings > manifest.memory_halvings:
                noted = dataclasses.replace(manifest, memory_halvings=halvings)
                write_manifest(self.folder, noted)

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
        if sample_id not in self._scored:
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
        self._record(_FAILURES, self._failures)

    def leave_out(self, sample_id: str, reasons: Sequence[str]) -> None:
        """Record that some objects of an image, or all, have nothing to score."""
        self._left_out[sample_id] = list(reasons)
        self._record(_LEFT_OUT, self._left_out)

    def _record(self, name: str, found: Mapping[str, object]) -> None:
        file = "-".join(filter(None, [name, self._label]))
        write_json(self.folder / f"{file}.json", found)

    def _flush(self) -> None:
        """Let the thread write what is in memory, once it has written what came before."""
        self._wait()
        tables: list[_Table] = [
            (_OBJECTS, OBJECTS, self._objects),
            (_MASKS, MASKS, self._masks),
            (_PHOTOGRAPHS, PHOTOGRAPHS, self._photographs),
            (_SCORES, SCHEMA, self._rows),
        ]
        self._rows, self._objects, self._masks, self._photographs = [], [], [], []
        self._writing = self._thread.submit(_append_parts, self.folder, tables, self._label)
        self._flushed = time.monotonic()

    def _wait(self) -> None:
        """Wait until all that was flushed is on the disk, and raise what hindered it."""
        if self._writing is not None:
            self._writing.result()


def _append_parts(folder: Path, tables: Sequence[_Table], label: str) -> None:
    """Append the next part to each table, in their order."""
    for name, schema, rows in tables:
        append_part(folder / name, schema, rows, label=label)


def stored_images(folder: Path) -> frozenset[str]:
    """Return the images whose scores a run holds.

    Raises:
        RunError: a part cannot be read.
    """
    return images_of(folder / _SCORES)


def read_run(folder: str | Path) -> Run:
    """Return a stored run, finished or not.

    Raises:
        RunError: the folder is no run, or a file of it cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not (folder / _SCORES).is_dir():
        raise RunError(f"{folder / _SCORES}: there is no such folder")
    objects = read_parts(folder / _OBJECTS, OBJECTS)
    failures = [read_json(path) for path in sorted(folder.glob(f"{_FAILURES}*.json"))]
    try:
        scores = read_scores(folder / _SCORES)
        check_scores(scores, manifest)
        check_objects(objects)
        for each in failures:
            check_failures(each)
    except ValueError as error:
        raise RunError(f"{folder}: is not a sound run: {error}") from error
    objects = _once(objects, ["sample_id", "instance_id"])
    held = held_in_memory(scores)
    stored = set(held["sample_id"].unique())
    left = {k: v for each in failures for k, v in each.items() if k not in stored}
    left_out: dict[str, list[str]] = {}
    for path in sorted(folder.glob(f"{_LEFT_OUT}*.json")):
        left_out |= {
            name: [str(x) for x in [*reasons]] for name, reasons in read_json(path).items()
        }
    return Run(folder, manifest, held, objects, left, left_out)


def read_runs(*paths: str | Path) -> list[Run]:
    """Return stored runs: of folders of runs, and all runs of a folder of results.

    Raises:
        RunError: a path is neither, or a file of a run cannot be read.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(found.parent for found in path.glob(f"*/{MANIFEST}"))
        folders += inside or [path]
    return [read_run(folder) for folder in folders]


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
    photographs = read_parts(folder / _PHOTOGRAPHS, PHOTOGRAPHS)
    try:
        check_photographs(photographs)
    except ValueError as error:
        raise RunError(f"{folder / _PHOTOGRAPHS}: {error}") from error
    return _once(photographs, ["sample_id"])


def _once(table: pa.Table, key: list[str]) -> pd.DataFrame:
    rows: pd.DataFrame = table.to_pandas()
    return rows.drop_duplicates(key, ignore_index=True)
