"""Runs on disk: Parquet tables in parts, appended as images are scored; a kill loses no part.

The tables are `scores/`, `quality/` (what a segmenter says of its own masks), `objects/`, where
masks are kept `masks/` and `photographs/`, where prompts were recorded `raters/`, and where they
are the boxes of a detector `detections/` and `targets/`. A part of the scores (with a detector, of
the targets) is written last and holds all rows of each of its images; so an image is either stored
or not, and rerunning the same command resumes. What other tables hold twice counts once.
"""

import dataclasses
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from samrobust.errors import RunError
from samrobust.files import write_atomic
from samrobust.runs.manifest import (
    MANIFEST,
    Detected,
    DetectionRow,
    Kept,
    MaskRow,
    ObjectRow,
    PhotographRow,
    QualityRow,
    RaterRow,
    RunManifest,
    Score,
    TargetRow,
    check_failures,
    check_objects,
    check_photographs,
    check_scores,
    has_detections,
    read_json,
    read_manifest,
    run_folder,
    write_json,
    write_manifest,
)
from samrobust.runs.sharing import WHOLE, Shard, claim, starting
from samrobust.types import Keep

MOST_ROWS = 5_000_000
"""Of a part: some times as many as a writer keeps in memory. Far more fit into a file of a few
bytes, where all are alike."""
MOST_BYTES = 2**32
"""Of a part, unpacked."""
R = TypeVar("R")
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
        write_atomic(path, buffer.getvalue())
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
        # opened by Python, as Arrow opens no path that is not UTF-8
        with part.open("rb") as source, pq.ParquetFile(source, read_dictionary=coded) as file:
            about = file.metadata
            groups = (about.row_group(group) for group in range(about.num_row_groups))
            n_bytes = sum(group.total_byte_size for group in groups)
            if about.num_rows > MOST_ROWS or n_bytes > MOST_BYTES:
                raise RunError(f"{part}: holds more than a part can: {about.num_rows} rows")
            missing = {*_LATER}.difference(file.schema_arrow.names)
            names = [name for name in wanted.names if name not in missing]
            table = file.read(columns=names, use_threads=False)
            for name in missing.intersection(wanted.names):
                unknown = pa.array([_LATER[name]] * len(table), wanted.field(name).type)
                table = table.append_column(name, unknown)
            table = table.select(wanted.names).cast(wanted)
            table.validate(full=True)
            return table
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise RunError(
            f"{part}: cannot be read, perhaps it was cut off; delete it and give the same command "
            "again, which evaluates its images again"
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
_TEXT = pa.dictionary(pa.int32(), pa.string())
"""A text that repeats, held once."""
_REPEATED = {"sample_id", "instance_id", "condition", "metric"}
_CODED = pa.schema(
    [(field.name, _TEXT if field.name in _REPEATED else field.type) for field in SCHEMA]
)
"""Of the scores as they are read."""
_BYTES_AT_ONCE = 2**22
"""Of part files that are reduced together; a run of short flushes has thousands of small ones."""
_MAX_THREADS = 4


def images_of(folder: Path) -> frozenset[str]:
    """Return the images that a table has rows of, with one part in memory at a time.

    Raises:
        RunError: the folder or a part cannot be read.
    """
    wanted = pa.schema([("sample_id", _TEXT)])
    parts = each_part(folder, wanted)
    return frozenset(key for part in parts for key in part["sample_id"].unique().to_pylist())


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
        ("supercategory", pa.string()),
        ("others", pa.int32()),
        ("image_side", pa.int32()),
    ]
)
QUALITY = pa.schema(
    [
        ("sample_id", _TEXT),
        ("instance_id", _TEXT),
        ("condition", _TEXT),
        ("trial", pa.int32()),
        ("quality", pa.float32()),
        ("gap", pa.float32()),
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
        ("file_name", pa.string()),
    ]
)
_LATER: Mapping[str, str | int | tuple[int, ...]] = {
    "file_name": "",
    "supercategory": "",
    "others": -1,
    "image_side": 0,
    "frequency": "",
    "negatives": (),
    "not_exhaustive": (),
}
"""Columns that older runs lack, with the value that says so."""
RATERS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("instance_id", pa.string()),
        ("condition", pa.string()),
        ("trial", pa.int32()),
        ("rater", pa.string()),
        ("loss", pa.float64()),
    ]
)
DETECTIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("number", pa.int32()),
        ("category_id", pa.int64()),
        ("score", pa.float64()),
        ("quality", pa.float32()),
        ("bbox", pa.list_(pa.float64())),
        ("counts", pa.binary()),
    ]
)
TARGETS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("instance_id", pa.string()),
        ("category_id", pa.int64()),
        ("area", pa.float64()),
        ("is_crowd", pa.bool_()),
        ("counts", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("frequency", pa.string()),
        ("negatives", pa.list_(pa.int64())),
        ("not_exhaustive", pa.list_(pa.int64())),
    ]
)
_SCORES, _FAILURES, _LEFT_OUT = "scores", "failures", "left-out"
_QUALITY, _OBJECTS, _RATERS = "quality", "objects", "raters"
_MASKS, _PHOTOGRAPHS = "masks", "photographs"
_DETECTIONS, _TARGETS = "detections", "targets"
_Table = tuple[str, pa.Schema, Sequence[object]]
"""Folder, schema and new rows of a table."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A stored run; its scores stay on disk until they are asked for.

    Attributes:
        folder: where the run lies.
        manifest: what was run, on what and with which versions.
        objects: one row per object, columns as in `OBJECTS`; runs of earlier versions have none.
        failures: sample id -> why the image could not be evaluated.
        left_out: sample id -> why some of its objects, or all, had nothing to score.
        only: the images whose scores are read, None for all.
        label: what its segmenter is called in tables, "" for the label of the segmenter itself.
    """

    folder: Path
    manifest: RunManifest
    objects: pd.DataFrame
    failures: dict[str, str]
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    only: frozenset[str] | None = None
    label: str = ""

    @cached_property
    def scores(self) -> pd.DataFrame:
        """All scores, one row per score, columns as in `SCHEMA`; read when first used.

        Texts that repeat are categories in alphabetical order. A run of 10^8 scores needs several
        GB; the summaries of `samrobust.report` never load this table.

        Raises:
            RunError: a part cannot be read, or is not of the run's protocol.
        """
        parts = [_CODED.empty_table(), *self.map_scores(lambda part: part)]
        table = pa.concat_tables(parts).unify_dictionaries()
        frame: pd.DataFrame = table.to_pandas(self_destruct=True, split_blocks=True)
        for name in frame.columns[frame.dtypes == "category"]:
            frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
        return frame

    @property
    def images(self) -> frozenset[str]:
        """The ids of the images that have scores, of `only` where they are chosen."""
        return self._stored if self.only is None else self._stored & self.only

    @cached_property
    def _stored(self) -> frozenset[str]:
        return stored_images(self.folder)

    @property
    def is_empty(self) -> bool:
        """Whether no image has scores yet."""
        return not _parts(self.folder / _SCORES)

    @property
    def n_missing(self) -> int:
        """The number of images that have neither scores nor a recorded failure."""
        return self.manifest.n_samples - len({*self._stored, *self.failures, *self.left_out})

    def map_scores(self, reduce: Callable[[pa.Table], R]) -> Iterator[R]:
        """Yield what a function makes of the scores, some whole images at a time.

        A few parts are in memory at once, read and reduced by threads; the results keep the order
        of the parts.

        Args:
            reduce: called with a table of the columns of `SCHEMA`, the ids, conditions and metrics
                as dictionaries.

        Raises:
            RunError: a part cannot be read, is not of the run's protocol, or `reduce` raised
                ValueError.
        """

        def read(parts: Sequence[Path]) -> list[R]:
            table = pa.concat_tables(_read_part(part, _CODED) for part in parts)
            try:
                check_scores(table, self.manifest)
                if self.only is not None:
                    table = _rows_of(table, self.only)
                return [reduce(table)] if self.only is None or len(table) else []
            except ValueError as error:
                raise RunError(f"{self.folder}: is not a valid run: {error}") from error

        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
            for found in pool.map(read, _batches(_parts(self.folder / _SCORES))):
                yield from found


def _rows_of(table: pa.Table, images: frozenset[str]) -> pa.Table:
    """Return the rows of some images."""
    coded = table["sample_id"].combine_chunks()
    chosen = np.array([name in images for name in coded.dictionary.to_pylist()], np.bool_)
    return table.filter(pa.array(chosen[coded.indices.to_numpy()]))


def _batches(parts: Sequence[Path]) -> list[list[Path]]:
    """Return files in groups of about `_BYTES_AT_ONCE` bytes."""
    batches: list[list[Path]] = []
    n_bytes = _BYTES_AT_ONCE
    for part in parts:
        if n_bytes >= _BYTES_AT_ONCE:
            batches.append([])
            n_bytes = 0
        batches[-1].append(part)
        n_bytes += part.stat().st_size
    return batches


class RunWriter:
    """Write one run or a shard of it, or go on with it; use as a context manager.

    Parts are written by a thread, one after the other, so that no image waits for the disk. What
    hinders one is raised when the next is due, or at the end.

    Args:
        results: the folder of all runs.
        manifest: what is run; see `run_folder`.
        shard: what this process writes; other processes may write others of as many at once.

    Raises:
        RunError: the folder cannot be written, is in use by another process, or holds a part that
            cannot be read.
    """

    def __init__(self, results: Path, manifest: RunManifest, shard: Shard = WHOLE) -> None:
        self.folder = run_folder(results, manifest)
        self._label = shard.label
        self._rows: list[Score] = []
        self._qualities: list[QualityRow] = []
        self._objects: list[ObjectRow] = []
        self._masks: list[MaskRow] = []
        self._photographs: list[PhotographRow] = []
        self._raters: list[RaterRow] = []
        self._detections: list[DetectionRow] = []
        self._targets: list[TargetRow] = []
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
        if has_detections(manifest):  # an image without a match has targets and no scores
            self.done = images_of(self.folder / _TARGETS)
        if (self.folder / _OBJECTS).is_dir():
            self.done &= images_of(self.folder / _OBJECTS)
        self._failures: dict[str, str] = {}
        own = self._record_path(_LEFT_OUT)
        self._left_out = _left_out([own] if own.exists() else [])
        # a thread that is started when memory has run out may wait for itself for ever
        self._thread.submit(int).result()

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
                self._note_left_out()
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
        qualities: Sequence[QualityRow] = (),
        objects: Sequence[ObjectRow] = (),
        kept: Kept | None = None,
        raters: Sequence[RaterRow] = (),
        detected: Detected | None = None,
    ) -> None:
        """Store what one image gave; it reaches the disk with the next parts.

        Scores of an image that had some before are not stored again.
        """
        if sample_id not in self._scored:
            self._rows.extend(scores)
            self._qualities.extend(qualities)
        self._objects.extend(objects)
        self._raters.extend(raters)
        if detected is not None:
            self._detections.extend(detected.detections)
            self._targets.extend(detected.targets)
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

    def _note_left_out(self) -> None:
        """Say in the manifest how many objects all processes have left out so far."""
        if not self._left_out:
            return
        with starting(self.folder):
            reasons = _left_out(self.folder.glob(f"{_LEFT_OUT}*.json")).values()
            noted = dataclasses.replace(
                read_manifest(self.folder), n_objects_left_out=sum(map(len, reasons))
            )
            write_manifest(self.folder, noted)

    def _record(self, name: str, found: Mapping[str, object]) -> None:
        write_json(self._record_path(name), found)

    def _record_path(self, name: str) -> Path:
        return self.folder / f"{'-'.join(filter(None, [name, self._label]))}.json"

    def _flush(self) -> None:
        """Let the thread write what is in memory, once it has written what came before."""
        self._wait()
        tables: list[_Table] = [
            (_OBJECTS, OBJECTS, self._objects),
            (_MASKS, MASKS, self._masks),
            (_PHOTOGRAPHS, PHOTOGRAPHS, self._photographs),
            (_QUALITY, QUALITY, self._qualities),
            (_RATERS, RATERS, self._raters),
            (_SCORES, SCHEMA, self._rows),
            (_DETECTIONS, DETECTIONS, self._detections),
            (_TARGETS, TARGETS, self._targets),
        ]
        self._detections, self._targets = [], []
        self._rows, self._qualities, self._raters = [], [], []
        self._objects, self._masks, self._photographs = [], [], []
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


def _left_out(paths: Iterable[Path]) -> dict[str, list[str]]:
    """Return sample id -> why some of its objects, or all, had nothing to score, of all files."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found |= {name: [*map(str, reasons)] for name, reasons in read_json(path).items()}
    return found


def read_run(folder: str | Path) -> Run:
    """Return a stored run, finished or not; its scores are read when they are asked for.

    Raises:
        RunError: the folder is no run, or a file of it other than its scores cannot be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not (folder / _SCORES).is_dir():
        raise RunError(f"{folder / _SCORES}: there is no such folder")
    objects = read_parts(folder / _OBJECTS, OBJECTS)
    recorded = [read_json(path) for path in sorted(folder.glob(f"{_FAILURES}*.json"))]
    try:
        check_objects(objects)
        for failures in recorded:
            check_failures(failures)
    except ValueError as error:
        raise RunError(f"{folder}: is not a valid run: {error}") from error
    scored = stored_images(folder) if recorded else frozenset()
    left = {k: v for failures in recorded for k, v in failures.items() if k not in scored}
    left_out = _left_out(folder.glob(f"{_LEFT_OUT}*.json"))
    return Run(folder, manifest, _once(objects, ["sample_id", "instance_id"]), left, left_out)


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


def read_quality(folder: Path) -> pd.DataFrame:
    """Return what the segmenter of a run says of its masks, columns as in `QUALITY`.

    It is empty for runs of versions that did not store it.

    Raises:
        RunError: a file of it cannot be read, or holds a quality that is not finite.
    """
    table = read_parts(folder / _QUALITY, QUALITY).unify_dictionaries()
    if not pc.all(pc.is_finite(table["quality"]), min_count=0).as_py():
        raise RunError(f"{folder / _QUALITY}: a quality is not finite")
    return _once(table, ["sample_id", "instance_id", "condition", "trial"])


def read_masks(folder: Path) -> pd.DataFrame:
    """Return the kept masks of a run, one a row, columns as in `MASKS`; none where none are kept.

    Raises:
        RunError: a file of it cannot be read.
    """
    key = ["sample_id", "instance_id", "condition", "trial"]
    return _once(read_parts(folder / _MASKS, MASKS), key)


def read_detections(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the masks of a detector's boxes and the annotations of their images.

    Columns are those of `DETECTIONS` and `TARGETS`; there are only images that have both.

    Raises:
        RunError: a file cannot be read, or holds a size that no image has.
    """
    detections = _once(read_parts(folder / _DETECTIONS, DETECTIONS), ["sample_id", "number"])
    table = read_parts(folder / _TARGETS, TARGETS)
    try:
        check_photographs(table)
    except ValueError as error:
        raise RunError(f"{folder / _TARGETS}: {error}") from error
    targets = _once(table, ["sample_id", "instance_id"])
    return detections[detections["sample_id"].isin(targets["sample_id"])], targets


def read_raters(folder: Path) -> pd.DataFrame:
    """Return who gave the recorded prompts of a run, columns as in `RATERS`; none for drawn ones.

    Raises:
        RunError: a file of it cannot be read.
    """
    key = ["sample_id", "instance_id", "condition", "trial"]
    return _once(read_parts(folder / _RATERS, RATERS), key)


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
