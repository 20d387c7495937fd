import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from samrobust.errors import ProtocolError, RunError
from samrobust.files import (
    MAX_NUMBER,
    Fraction,
    NonNegative,
    convert,
    errors_at,
    read_json,
    read_toml,
    shown,
    write_atomic,
)


@dataclass(frozen=True)
class Cup:
    handles: Annotated[int, Meta(multiple_of=2)] = 2


@dataclass(frozen=True)
class Kettle:
    litres: float
    cups: int
    name: str = "kettle"
    whistles: bool = False
    colour: Literal["black", "white"] = "black"
    weight: NonNegative = 1.0
    full: Fraction = 0.0
    lid: Cup = Cup()
    others: Annotated[tuple[Cup, ...], Meta(max_length=2)] = ()
    prices: Mapping[str, NonNegative] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.litres < 0:
            raise ValueError(f"litres must be at least 0, got {self.litres}")


def test_values_of_a_table_become_fields_and_the_rest_keep_their_defaults() -> None:
    table = {"cups": 4, "litres": 1.5, "whistles": True, "others": [{"handles": 4}]}
    found = convert(table, Kettle, where="kettle")
    assert found == Kettle(1.5, 4, "kettle", whistles=True, others=(Cup(4),))


def test_whole_numbers_are_numbers_and_stay_whole_where_a_hash_needs_it() -> None:
    found = convert({"litres": 2, "cups": 4, "weight": 3}, Kettle, where="kettle")
    assert found.litres == 2
    assert (repr(found.weight), repr(found.full)) == ("3", "0.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cup": 4}, "kettle has no parameter 'cup'. Did you mean 'cups'? Known: colour, cups, "),
        ({"zz": 4}, "kettle has no parameter 'zz'. Known: colour, cups, full, lid, litres, name, "),
        ({"cups": 4.0}, "kettle: cups must be a whole number, got 4.0"),
        ({"cups": True}, "kettle: cups must be a whole number, got True"),
        (
            {"cups": 2**64},
            "kettle: cups must be a whole number of 64 bits, got 18446744073709551616",
        ),
        ({"cups": 1 << 40_000}, "cups must be a whole number of 64 bits, got a value too large to"),
        ({"litres": "1"}, "kettle: litres must be a number, got '1'"),
        ({"litres": True}, "kettle: litres must be a number, got True"),
        ({"litres": -1}, "kettle: litres must be at least 0, got -1"),
        ({"litres": float("nan")}, "litres must be a finite number below 1e+09, got nan"),
        ({"litres": float("inf")}, "litres must be a finite number below 1e+09, got inf"),
        ({"litres": int(MAX_NUMBER)}, "must be a finite number below 1e+09, got 1000000000"),
        ({"litres": 10**400}, "litres must be a whole number of 64 bits, got 1000"),
        ({"weight": MAX_NUMBER}, "weight must be a finite number below 1e+09, got 1000000000.0"),
        ({"weight": -1}, "kettle: weight must be at least 0, got -1"),
        ({"weight": True}, "kettle: weight must be a number, got True"),
        ({"full": 1.5}, "kettle: full must be at most 1, got 1.5"),
        ({"name": 3}, "kettle: name must be text, got 3"),
        ({"whistles": 1}, "kettle: whistles must be true or false, got 1"),
        ({"colour": "whit"}, "colour: unknown value 'whit'. Did you mean 'white'? Known: black, "),
        ({"colour": 3}, "kettle: colour must be text, got 3"),
        (
            {"lid": {"handle": 2}},
            "lid has no parameter 'handle'. Did you mean 'handles'? Known: ha",
        ),
        ({"lid": {"handles": 3}}, "lid: handles must be a multiple of 2, got 3"),
        ({"lid": [{}]}, "kettle: lid must be a table, opened by [lid], got [{}]"),
        ({"others": {}}, "others must be a list of tables, each opened by [[others]], got {}"),
        ({"others": [{}, {"handles": "x"}]}, "row 2 of 'others': handles must be a whole number, "),
        ({"others": [{}] * 3}, "kettle: others must have at most 2 rows, got 3"),
        ({"others": [5]}, "kettle: row 1 of 'others' must be a table, got 5"),
        ({"prices": {"a": -1}}, "a value of 'prices' must be at least 0, got {'a': -1}"),
        ({"name": "x" * 999, "cups": "y" * 999}, f"whole number, got '{'y' * 59}…"),
    ],
)
def test_what_is_wrong_is_said_with_table_key_and_value(
    changes: dict[str, Any], message: str
) -> None:
    table = {"litres": 1.0, "cups": 4, **changes}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        convert(table, Kettle, where="kettle")
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"^kettle needs the parameter 'litres'$"):
        convert({"cups": 4}, Kettle, where="kettle")


def test_keys_of_a_later_version_can_be_ignored() -> None:
    table = {"litres": 1.0, "cups": 4, "new": 1, "lid": {"newer": {}}}
    assert convert(table, Kettle, where="kettle", ignore_unknown=True) == Kettle(1.0, 4)


@dataclass(frozen=True)
class Nothing:
    pass


def test_what_has_no_parameters_says_so() -> None:
    assert convert({}, Nothing, where="nothing") == Nothing()
    with pytest.raises(ValueError, match=r"^nothing has no parameter 'x'. Known: none$"):
        convert({"x": 1}, Nothing, where="nothing")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "own"
    file.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(file, error=ProtocolError) == {"a": 1}
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file, error=RunError) == {"a": 1}


@pytest.mark.parametrize(
    "content", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 99_999]
)
def test_json_holds_finite_numbers_and_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(RunError, match=r"own\.json: is not JSON: "):
        read_json(tmp_path / "own.json", error=RunError)


def test_errors_get_the_place_where_they_are_made() -> None:
    with (
        pytest.raises(RunError, match=r"^a: b: no$"),
        errors_at("a", RunError),
        errors_at("b"),
    ):
        raise ValueError("no")


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_atomic(tmp_path / "file", content)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]


def test_long_values_are_cut_off() -> None:
    assert shown("x" * 99) == f"'{'x' * 59}…"
