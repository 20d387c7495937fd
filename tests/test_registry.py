from importlib.metadata import EntryPoint

import pytest

import samrobust.registry
from samrobust.errors import SamrobustError, UnknownNameError
from samrobust.registry import Entry, Registry


def _registry(monkeypatch: pytest.MonkeyPatch, *plugins: tuple[str, str]) -> Registry[object]:
    points = [EntryPoint(name, value, "group") for name, value in plugins]
    monkeypatch.setattr(samrobust.registry, "entry_points", lambda group: points)  # noqa: ARG005
    builtin = {
        "zeta": Entry("math:pi", "the ratio"),
        "none": Entry("math:tau", "", takes=("--split",)),
    }
    return Registry("number", builtin, group="group")


def test_names_are_built_ins_then_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = _registry(monkeypatch, ("e", "math:e"), ("a", "math:inf"))
    assert registry.names() == ["zeta", "none", "a", "e"]
    assert registry.load("zeta") == pytest.approx(3.14159, abs=1e-5)
    assert registry.load("e") == pytest.approx(2.71828, abs=1e-5)
    assert registry.summary("zeta") == "the ratio"
    assert registry.summary("e") == "plug-in math:e"
    assert registry.takes("e", "--split")
    assert registry.takes("zeta", "--data-root")
    assert registry.takes("none", "--split")
    assert not registry.takes("none", "--data-root")


def test_an_unknown_name_gets_its_near_miss_and_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = _registry(monkeypatch)
    with pytest.raises(
        UnknownNameError, match=r"unknown number 'zetta'\. Did you mean 'zeta'\? Known: none, zeta"
    ):
        registry.load("zetta")
    with pytest.raises(UnknownNameError, match=r"unknown number 'q'\. Known"):
        registry.summary("q")


def test_a_name_owned_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SamrobustError, match="'zeta' is built in"):
        _registry(monkeypatch, ("zeta", "math:e")).names()
    with pytest.raises(SamrobustError, match="'a' is defined twice: math:e and math:inf"):
        _registry(monkeypatch, ("a", "math:e"), ("a", "math:inf")).names()


def test_a_broken_plugin_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SamrobustError, match="plug-in nowhere:x cannot be imported"):
        _registry(monkeypatch, ("a", "nowhere:x")).load("a")
