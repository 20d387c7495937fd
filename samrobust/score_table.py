"""The table of scores: how it is stored, and how 10^8 rows of it fit into memory."""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from samrobust.parts import each_part

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
