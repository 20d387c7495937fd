"""One table on disk, in parts: `FOLDER/part-*.parquet`, each there whole or not at all.

A process that shares a table with others has a label, and its parts are `part-LABEL-*.parquet`.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from samrobust.errors import RunError
from samrobust.whole import write_whole

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
