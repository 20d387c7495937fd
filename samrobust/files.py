"""Write files atomically, and read TOML tables into checked dataclasses."""

import contextlib
import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from samrobust.errors import SamrobustError


def cache_folder() -> Path:
    """Return the folder of downloaded weights and of hashes of data sets."""
    from pooch import os_cache  # type: ignore[import-untyped]

    return Path(os.environ.get(CACHE_VARIABLE) or os_cache("samrobust"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place, and move it there when all of it is on the disk.

    Raises:
        OSError: it cannot be written; what was at `path` before is still there, and nothing else.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


S = TypeVar("S")

CACHE_VARIABLE = "SAMROBUST_CACHE"
"""Environment variable that names another cache folder than the user's."""

LARGEST = 1e9
"""No number in a file is as large; beyond, coordinates would overflow."""
MOST_BYTES = 2**18
"""Of a TOML file: a thousand conditions need less."""
SHOWN = 60
"""Characters of a wrong value that a message repeats."""
_DEEP_KEY = re.compile(r"""(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""")
"""A key of more parts than any has; tomllib's memory grows with the square of their number."""
WORDS: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
"""What each kind of TOML value is called in messages."""


def read_table(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        ValueError: it cannot be read, is larger than `MOST_BYTES`, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
        if _DEEP_KEY.search(text):
            raise ValueError("a key has more than 16 parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not TOML: {error}") from error


def build_from(
    path: Path, build: Callable[[Mapping[str, Any]], S], *, error: type[SamrobustError]
) -> S:
    """Return what is made of the table of a TOML file.

    Args:
        path: of the file.
        build: makes it.
        error: of the file, whatever is wrong with it; its message names the file.
    """
    try:
        table = read_table(path)
    except ValueError as reason:
        raise error(f"{path}: {reason}") from reason
    try:
        return build(table)
    except (SamrobustError, ValueError) as reason:
        raise error(f"{path.name}: {reason}") from reason


def make_settings(build: type[S], table: Mapping[str, Any], *, kind: str) -> S:
    """Return a dataclass with the values of a TOML table as its fields.

    Args:
        build: the dataclass; fields with a default may be missing in the table.
        table: names and values.
        kind: what the table is, for messages ("box-noise").

    Raises:
        ValueError: a name is unknown or missing, or a value is not of its field's kind or not
            allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(build)}  # type: ignore[arg-type]
    hints = get_type_hints(build)
    for key, value in table.items():
        if key not in fields:
            allowed = ", ".join(sorted(fields)) or "none"
            raise ValueError(f"{kind} has no parameter '{key}'. Known: {allowed}")
        if hints[key] in WORDS and not is_of_kind(value, hints[key]):
            raise ValueError(f"{kind}: {key} must be {WORDS[hints[key]]}, got {shown(value)}")
    for field in fields.values():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in table and not optional:
            raise ValueError(f"{kind} needs the parameter '{field.name}'")
    try:
        return build(**table)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error


def is_of_kind(value: object, kind: type) -> bool:
    """Return whether a TOML value is of a kind.

    Whole numbers are numbers too; booleans are not, nor what is not finite or absurdly large.
    Whole numbers have 64 bits, as TOML's.
    """
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < LARGEST
    if kind is int:
        return isinstance(value, int) and value.bit_length() <= 64
    return isinstance(value, kind)


def shown(value: object) -> str:
    """Return a value as a message repeats it, cut off where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or tables in tables
        return f"{WORDS.get(type(value), 'a table')} too large to be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
