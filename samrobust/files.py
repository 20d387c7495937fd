"""Write files atomically, and read TOML and JSON files into checked dataclasses."""

import contextlib
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, ValidationError, inspect

from samrobust.errors import SamrobustError
from samrobust.registry import near_miss

T = TypeVar("T")

NonNegative = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
"""A number as the file writes it: 1 and 1.0 are hashed as different texts."""
Fraction = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]
"""A number in [0, 1], as the file writes it."""

CACHE_VARIABLE = "SAMROBUST_CACHE"
"""Environment variable with the path of a cache folder in place of the user's default."""
MAX_NUMBER = 1e9
"""Bound on numbers that may have decimals: larger ones would overflow as coordinates."""
MAX_TOML_BYTES = 2**18
"""Of a file; a protocol of a thousand conditions is smaller."""
MAX_SHOWN = 60
"""Characters of a wrong value that a message shows."""
_DEEP_KEY = re.compile(r"""(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){16}""")
"""A key of more than 16 parts; tomllib's memory grows with the square of their number."""


def cache_folder() -> Path:
    """Return the folder of downloaded weights and of file hashes."""
    from pooch import os_cache  # type: ignore[import-untyped]

    return Path(os.environ.get(CACHE_VARIABLE) or os_cache("samrobust"))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: after an interruption it has the old or the new content.

    Raises:
        OSError: the file cannot be written; the old content stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def leaves_root(name: str) -> bool:
    """Return whether a relative path, on POSIX or Windows, can lead out of its root folder."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def read_toml(path: Path, *, error: type[SamrobustError]) -> dict[str, Any]:
    """Return the table of a TOML file.

    Raises:
        SamrobustError: of the type `error`: the file cannot be read, is larger than
            `MAX_TOML_BYTES`, or is not TOML.
    """
    content = _read(path, error, limit=MAX_TOML_BYTES)
    try:
        text = content.decode("utf-8-sig")
        if _DEEP_KEY.search(text):
            raise ValueError("a key has more than 16 parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: is not TOML: {reason}") from reason


def read_json(path: Path, *, error: type[SamrobustError]) -> dict[str, Any]:
    """Return the object of a JSON file; NaN, infinities and unpaired surrogates are not JSON.

    Raises:
        SamrobustError: of the type `error`: the file cannot be read, or is not a JSON object.
    """
    content = _read(path, error)
    try:
        plain = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: is not JSON: {reason}") from reason
    if not isinstance(plain, dict):
        raise error(f"{path}: is not a JSON object")
    return plain


def _read(path: Path, error: type[SamrobustError], limit: int | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(-1 if limit is None else limit + 1)
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from reason
    if limit is not None and len(content) > limit:
        raise error(f"{path}: is larger than {limit:,} bytes")
    return content


@contextlib.contextmanager
def errors_at(
    place: str, error: type[SamrobustError] | type[ValueError] = ValueError
) -> Iterator[None]:
    """Raise errors of the body as `error`, with the place in front of the message."""
    try:
        yield
    except (SamrobustError, ValueError) as reason:
        raise error(f"{place}: {reason}") from reason


def convert(plain: object, kind: type[T], *, where: str, ignore_unknown: bool = False) -> T:
    """Return plain values of a TOML or JSON file as a dataclass, or any type that msgspec knows.

    Args:
        plain: tables, lists, texts and numbers.
        kind: the type, with its constraints. An integer is accepted as a float, a boolean is not;
            numbers with decimals are below `MAX_NUMBER`, integers have at most 64 bits.
        where: name of the table in messages ("box-noise", "row 3 of 'expected'").
        ignore_unknown: accept keys that are not fields, as those of a later version.

    Raises:
        ValueError: a value is missing, unknown or not allowed; the message is one line with the
            table, the key, the value and what is allowed.
    """
    try:
        _check(plain, inspect.type_info(kind), ignore_unknown=ignore_unknown)
        return msgspec.convert(plain, kind)
    except ValidationError as error:
        raise ValueError(_message(str(error), plain, where)) from error


def shown(value: object) -> str:
    """Return a value as text for a message, cut off after `MAX_SHOWN` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or tables in tables
        return "a value too large to be shown"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _check(
    value: object, kind: inspect.Type, path: str = "$", *, ignore_unknown: bool = False
) -> None:
    """Refuse what msgspec accepts: unknown keys of dataclasses, and numbers of any size.

    Raises:
        ValidationError: its message ends with the path of the value, as those of msgspec do.
    """
    if isinstance(kind, inspect.DataclassType) and isinstance(value, dict):
        fields = {field.name: field.type for field in kind.fields}
        for key, inner in value.items():
            if key in fields:
                _check(inner, fields[key], f"{path}.{key}", ignore_unknown=ignore_unknown)
            elif not ignore_unknown:
                hint = near_miss(key, fields)
                raise ValidationError(f"no parameter {shown(key)}. {hint} - at `{path}`")
    elif isinstance(kind, inspect.CollectionType) and isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, kind.item_type, f"{path}[{index}]", ignore_unknown=ignore_unknown)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for inner in value.values():
            _check(inner, kind.value_type, f"{path}[...]", ignore_unknown=ignore_unknown)
    elif isinstance(value, str) and (choices := _choices(kind)):
        if value not in choices:
            hint = near_miss(value, choices) + (" or a number" if _has_decimals(kind) else "")
            raise ValidationError(f"unknown value {shown(value)}. {hint} - at `{path}`")
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValidationError(f"Expected `a whole number of 64 bits` - at `{path}`")
    elif isinstance(value, int | float) and _has_decimals(kind) and not abs(value) < MAX_NUMBER:
        raise ValidationError(f"Expected `a finite number below {MAX_NUMBER:g}` - at `{path}`")


def _choices(kind: inspect.Type) -> list[str]:
    """Return the texts that a type allows, none if it allows all or none."""
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if any(isinstance(member, inspect.StrType) for member in members):
        return []
    literals = [member for member in members if isinstance(member, inspect.LiteralType)]
    return [str(choice) for literal in literals for choice in literal.values]


def _has_decimals(kind: inspect.Type) -> bool:
    members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(member, inspect.FloatType) for member in members)


_PATH = re.compile(r"(?s)(.*?)(?: - at `\$([^`]*)`)?")
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "int | float": "a number",
    "int | float | str": "a number or text",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}


def _message(text: str, plain: object, where: str) -> str:
    """Return an error message of msgspec in terms of the file: its tables, rows and keys."""
    text, path = _PATH.fullmatch(text).groups("")  # type: ignore[union-attr]  # always matches
    value: Any = plain
    places = [where]
    for name, index in _STEP.findall(path):
        if name:
            value = value[name]
            places.append(name)
        elif index == "...":  # msgspec does not name the key
            places[-1] = f"a value of '{places[-1]}'"
        else:
            value = value[int(index)]
            places[-1] = f"row {int(index) + 1} of '{places[-1]}'"
    if missing := re.fullmatch(r"Object missing required field `(.+)`", text):
        return f"{places[-1]} needs the parameter '{missing[1]}'"
    if text.startswith("no parameter "):
        return f"{places[-1]} has {text}"
    place = ": ".join(places[-2:])
    if text.startswith("Expected "):
        return f"{place} {_expected(text, places[-1], value)}"
    return f"{place}: {text}"


def _expected(text: str, key: str, value: object) -> str:
    """Return "must be ..., got ..." for the "Expected ..." of msgspec."""
    kind, rest = re.fullmatch(r"Expected `(.*?)`(.*)", text).groups()  # type: ignore[union-attr]
    if bound := re.fullmatch(r" ([<>]=?) (\S+)", rest):
        allowed = f"be {_BOUNDS[bound[1]]} {bound[2].removesuffix('.0')}"
    elif (length := re.fullmatch(r" of length ([<>]=) (\d+)", rest)) and isinstance(value, list):
        if length.groups() == (">=", "1"):
            return "must not be empty"
        return f"must have {_BOUNDS[length[1]]} {length[2]} rows, got {len(value)}"
    elif exact := re.fullmatch(r" of length (\d+)(?:, got \d+)?", rest):
        return f"must have {exact[1]} values, got {shown(value)}"
    elif multiple := re.fullmatch(r" that's a multiple of (\d+)", rest):
        allowed = f"be a multiple of {multiple[1]}"
    elif kind == "array" and isinstance(value, dict):
        allowed = f"be a list of tables, each opened by [[{key}]]"
    elif kind == "object" and isinstance(value, list):
        allowed = f"be a table, opened by [{key}]"
    else:
        kinds = [kind] if kind in _WORDS else kind.removesuffix(" | null").split(" | ")
        allowed = "be " + " or ".join(_WORDS.get(name, name) for name in kinds)
    return f"must {allowed}, got {shown(value)}"
