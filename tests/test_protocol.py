from pathlib import Path

import pytest

from samrobust.errors import ProtocolError, UnknownNameError
from samrobust.protocol import (
    describe_protocol,
    load_protocol,
    packaged_protocols,
    protocol_hash,
    with_trials,
)

GOOD = """
name = "own"
version = 1
summary = "a test"
source = "here"
seed = 3
trials = 4
selection = "single"
metrics = ["iou"]

[[conditions]]
name = "box-0.4"
degradation = "box-noise"
shift = 0.4
scale = 1
"""


def _load(tmp_path: Path, text: str) -> str:
    """Return the error of loading a file with that text."""
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(ProtocolError) as caught:
        load_protocol(str(file))
    return str(caught.value)


def test_packaged_protocols_are_what_they_are_called() -> None:
    expected = {
        "gt-box": 1,
        "noisy-box": 1 + 6 * 20,
        "box-shift": 1 + 6 * 20,
        "box-scale": 9,
        "human-box": 1 + 6 * 20,
        "worst-box": 3,
        "worst-point": 3,
        "points": 5 * 20,
        "border-points": 5 * 20,
        "parts": 3 * 20,
        "thresholds": 1 + 3 * 20,
        "stable-sam-table": 1 + 4 * 20,
        "hq-sam-noise": 1 + 2 * 20,
        "corruption-grid": 46 * (1 + 3 * 4),
        "clicks": 20,
        "click-groups": 10 * 20,
        "clicks-from-noisy-box": 11 * (1 + 3 + 3),
    }
    assert set(packaged_protocols()) == set(expected)
    for name, n_prompts in expected.items():
        protocol = load_protocol(name)
        assert protocol.name == name
        assert sum(condition.trials for condition in protocol.conditions) == n_prompts


def test_condition_names_are_the_contract() -> None:
    names = {
        condition.name
        for name in packaged_protocols()
        for condition in load_protocol(name).conditions
    }
    assert {"exact-box", "box-noise-0.4", "points-3", "border-points-1"} <= names


def test_a_users_own_file_works_by_path(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(GOOD)
    protocol = load_protocol(str(file))
    described = describe_protocol(protocol)["conditions"]
    assert described == [
        {
            "name": "box-0.4",
            "degradation": "box-noise",
            "parameters": {"shift": 0.4, "scale": 1},
            "trials": 4,
            "level": None,
        }
    ]


def test_the_hash_follows_what_can_change_a_number(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        file = tmp_path / "own.toml"
        file.write_text(text)
        return protocol_hash(load_protocol(str(file)))

    assert hash_of(GOOD) == hash_of(GOOD.replace("a test", "another summary") + "# comment")
    for old, new in (("shift = 0.4", "shift = 0.3"), ("seed = 3", "seed = 4"), ("own", "my")):
        assert hash_of(GOOD) != hash_of(GOOD.replace(old, new))


def test_trials_are_overridden_where_there_is_randomness() -> None:
    protocol = with_trials(load_protocol("noisy-box"), 3)
    assert [condition.trials for condition in protocol.conditions] == [1, 3, 3, 3, 3, 3, 3]
    assert protocol.trials == 3
    with pytest.raises(ProtocolError, match="trials must be at least 1, got 0"):
        with_trials(protocol, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "shift = 0.4",
            "shfit = 0.4",
            "condition 'box-0.4': box-noise has no parameter 'shfit'. Did you mean 'shift'? ",
        ),
        ("shift = 0.4\n", "", "condition 'box-0.4': box-noise needs the parameter 'shift'"),
        ("shift = 0.4", "shift = '1'", "box-noise: shift must be a number, got '1'"),
        ("shift = 0.4", "shift = true", "box-noise: shift must be a number, got True"),
        ("shift = 0.4", "shift = -1", "condition 'box-0.4': box-noise: shift must be a finite"),
        ('"box-noise"', '"box-nois"', "Did you mean 'box-noise'?"),
        ('degradation = "box-noise"', "", "condition 'box-0.4' needs the parameter 'degradation'"),
        ("trials = 4", "trials = 0", "trials must be at least 1, got 0"),
        ("scale = 1", "scale = 1\nlevel = 'x'", "level must be a number, got 'x'"),
        ("version = 1", "version = 1\nversoin = 2", "has no parameter 'versoin'. Did you mean"),
        ("seed = 3\n", "", "the protocol needs the parameter 'seed'"),
        ("seed = 3", "seed = 3.5", "seed must be a whole number, got 3.5"),
        ('["iou"]', '["iuo"]', "unknown metric 'iuo'. Did you mean 'iou'?"),
        ('["iou"]', "[]", "metrics must not be empty"),
        ('"single"', '"best"', "selection: unknown value 'best'. Known: best-"),
        ("name = ", "name ", "is not TOML"),
        (
            "scale = 1",
            "scale = 1\n[[conditions]]\nname='box-0.4'\ndegradation='exact-box'",
            "twice",
        ),
        (GOOD[GOOD.index("[[c") :], "conditions = [1]", "row 1 of 'conditions' must be a ta"),
        (GOOD[GOOD.index("[[c") :], "conditions = []", "conditions must not be empty"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    line = _load(tmp_path, GOOD.replace(old, new))
    assert message in line
    assert "\n" not in line
    assert "own.toml" in line


def test_reported_values_are_checked(tmp_path: Path) -> None:
    row = (
        "[[reported]]\nsegmenter='S'\ndataset='d'\ncondition='box-0.4'\nmetric='iou'\n"
        "value=0.5\nsource='paper'\n"
    )
    file = tmp_path / "own.toml"
    file.write_text(GOOD + row)
    assert load_protocol(str(file)).reported[0].value == 0.5
    assert "must be in [0, 1], got 50" in _load(tmp_path, GOOD + row.replace("0.5", "50"))
    assert "unknown condition in reported" in _load(tmp_path, GOOD + row.replace("0.4", "0.5"))


def test_missing_files_and_unknown_names_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot be read: No such file"):
        load_protocol(str(tmp_path / "none.toml"))
    with pytest.raises(UnknownNameError, match="Did you mean 'noisy-box'"):
        load_protocol("nosy-box")
