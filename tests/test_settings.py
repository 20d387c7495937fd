import re
from dataclasses import dataclass
from typing import Any

import pytest

from samrobust.files import LARGEST, is_of_kind, make_settings


@dataclass(frozen=True)
class Kettle:
    litres: float
    cups: int
    name: str = "kettle"
    whistles: bool = False

    def __post_init__(self) -> None:
        if self.litres < 0:
            raise ValueError(f"litres must be at least 0, got {self.litres}")


def test_values_of_a_table_become_fields_and_the_rest_keep_their_defaults() -> None:
    found = make_settings(Kettle, {"cups": 4, "litres": 1.5, "whistles": True}, kind="kettle")
    assert found == Kettle(1.5, 4, "kettle", whistles=True)


def test_whole_numbers_are_numbers() -> None:
    assert make_settings(Kettle, {"litres": 2, "cups": 4}, kind="kettle").litres == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"litres": 1.0, "cup": 4},
            "kettle has no parameter 'cup'. Known: cups, litres, name, whistles",
        ),
        ({"cups": 4}, "kettle needs the parameter 'litres'"),
        ({"litres": 1.0, "cups": 4.0}, "kettle: cups must be a whole number, got 4.0"),
        ({"litres": "1", "cups": 4}, "kettle: litres must be a number, got '1'"),
        ({"litres": 1.0, "cups": True}, "kettle: cups must be a whole number, got True"),
        ({"litres": 1.0, "cups": 4, "name": 3}, "kettle: name must be text, got 3"),
        (
            {"litres": 1.0, "cups": 4, "whistles": 1},
            "kettle: whistles must be true or false, got 1",
        ),
        ({"litres": -1, "cups": 4}, "kettle: litres must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_said_with_table_and_key(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_settings(Kettle, table, kind="kettle")


@dataclass(frozen=True)
class Nothing:
    pass


def test_what_has_no_parameters_says_so() -> None:
    assert make_settings(Nothing, {}, kind="nothing") == Nothing()
    with pytest.raises(ValueError, match=r"^nothing has no parameter 'x'. Known: none$"):
        make_settings(Nothing, {"x": 1}, kind="nothing")


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (3, {int, float}),
        (-3, {int, float}),
        (3.0, {float}),
        (True, {bool}),
        ("3", {str}),
        ([3], {list}),
        (float("nan"), set()),
        (float("inf"), set()),
        (-float("inf"), set()),
        (LARGEST, set()),
        (-LARGEST / 2, {float}),
        (None, set()),
    ],
)
def test_a_value_is_of_the_kinds_that_a_reader_of_the_file_would_say(
    value: object, kinds: set[type]
) -> None:
    assert {kind for kind in (str, int, float, bool, list) if is_of_kind(value, kind)} == kinds
