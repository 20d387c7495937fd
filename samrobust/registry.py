"""Find segmenters, data sets, degradations and metrics by name: built-ins and plug-ins."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, get_args

from samrobust.errors import SamrobustError, UnknownNameError

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Entry:
    """One built-in of a registry.

    Attributes:
        target: `module:attribute`, imported when the name is first used.
        summary: what it is and what it accepts, in one line, shown by `samrobust ls`.
        takes: the options that say where its files are, or which of them; None for all.
        hints: what to type instead, by the beginning, in small letters and digits, of names that
            are not registered but that people know it by.
    """

    target: str
    summary: str
    takes: tuple[str, ...] | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Any:  # noqa: ANN401
        """Import and return the target."""
        module, attribute = self.target.split(":")
        return getattr(import_module(module), attribute)


class Registry(Generic[T_co]):
    """Names of one kind, each imported on first use.

    Args:
        kind: what the names stand for, in the singular, for messages ("segmenter").
        builtin: names of the package itself.
        group: entry-point group in which installed packages add their names.
    """

    def __init__(self, kind: str, builtin: Mapping[str, Entry], *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin)

    def names(self) -> list[str]:
        """Return all names: built-ins in the order of their table, then plug-ins, sorted."""
        return [*self._builtin, *sorted(self._plugins())]

    def known(self, name: str) -> str:
        """Return a name that somebody owns.

        Raises:
            UnknownNameError: nobody does; the message says what to type instead, where a row knows,
                or has a near miss and the list.
        """
        names = self.names()
        if name not in names:
            plain = re.sub(r"[^a-z0-9]", "", name.lower().rpartition("/")[2])
            for entry in self._builtin.values():
                for beginning, hint in entry.hints.items():
                    if plain.startswith(beginning):
                        raise UnknownNameError(f"unknown {self.kind} '{name}'. Is it {hint}?")
        return known(name, names, kind=self.kind)

    def summary(self, name: str) -> str:
        """Return the one-line description of a name, without importing its target."""
        if name in self._builtin:
            return self._builtin[name].summary
        plugin = self._plugins()[self.known(name)]
        return f"plug-in {plugin.value}" + (f" of {plugin.dist.name}" if plugin.dist else "")

    def takes(self, name: str, option: str) -> bool:
        """Return whether a name accepts a command-line option; plug-ins accept all."""
        options = self._builtin[name].takes if name in self._builtin else None
        return options is None or option in options

    def load(self, name: str) -> T_co:
        """Import and return the target of a name.

        Raises:
            UnknownNameError: the name is unknown; the message lists all, with the nearest first.
            SamrobustError: two packages use the name, or a plug-in cannot be imported.
        """
        self.known(name)
        plugins = self._plugins()
        target: T_co
        if name in self._builtin:
            target = self._builtin[name].load()
            return target
        try:
            target = plugins[name].load()
        except (ImportError, AttributeError) as error:
            raise SamrobustError(
                f"{self.kind} '{name}': plug-in {plugins[name].value} cannot be imported: {error}"
            ) from error
        return target

    def _plugins(self) -> dict[str, EntryPoint]:
        plugins: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            owner = plugins.get(point.name)
            if point.name in self._builtin:
                raise SamrobustError(
                    f"{self.kind} '{point.name}' is built in: plug-in {point.value} needs another "
                    "name"
                )
            if owner is not None and owner.value != point.value:
                raise SamrobustError(
                    f"{self.kind} '{point.name}' is defined twice: {owner.value} and {point.value}"
                )
            plugins[point.name] = point
        return plugins


def known(name: str, names: Iterable[str], *, kind: str) -> str:
    """Return `name` if it is one of `names`.

    Raises:
        UnknownNameError: it is not; the message has the nearest name, if one is close, and the
            list.
    """
    candidates = list(names)
    if name in candidates:
        return name
    raise UnknownNameError(f"unknown {kind} '{name}'. {near_miss(name, candidates)}")


def near_miss(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest name and the list of all.

    >>> near_miss("shfit", ["shift", "scale"])
    "Did you mean 'shift'? Known: scale, shift"
    """
    allowed = sorted(names)
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Known: {', '.join(allowed) or 'none'}"


def one_of(choices: Any, name: str, *, kind: str) -> Any:  # noqa: ANN401
    """Return `name` as one of the values of a `Literal` type.

    Raises:
        UnknownNameError: it is not one of them.
    """
    return known(name, get_args(choices), kind=kind)
