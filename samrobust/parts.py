"""One table on disk, in parts: `FOLDER/part-*.parquet`, each there whole or not at all."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from samrobust.errors import RunError
from samrobust.whole import write_whole

_PART = re.compile(r"part-(\d{5,})\.parquet")


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
    return pa.concat_tables([wanted.empty_table(), *each_part(folder, names)])


def each_part(
    folder: Path, columns: Sequence[str], *, coded: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield the parts of a table in their order; none where there is no folder.

    Args:
        folder: of the parts.
        columns: of the table.
        coded: those of the columns in which a text that repeats stands once (Arrow's dictionaries).

    Raises:
        RunError: the folder or a part cannot be read.
    """
    for part in _parts(folder) if folder.exists() else []:
        yield _read_part(part, columns, coded)


def append_part(folder: Path, schema: pa.Schema, rows: Sequence[object]) -> None:
    """Write rows, objects with an attribute a column, as the next part; nothing where none are.

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
        number = max((int(part.stem[5:]) for part in _parts(folder)), default=-1) + 1
        path = folder / f"part-{number:05d}.parquet"
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


def _read_part(part: Path, columns: Sequence[str], coded: Sequence[str]) -> pa.Table:
    try:
        return pq.read_table(part, columns=list(columns), read_dictionary=list(coded))
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"{part}: cannot be read, perhaps it was cut off; delete it and give the same command "
            "again, which evaluates its images anew"
        ) from error
