"""Segmenters that are not built in: of plug-ins, files, modules and objects of the user's."""

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import torch

from samrobust.errors import SamrobustError, SegmenterError
from samrobust.registry import near_miss
from samrobust.segmenters.published import file_sha256
from samrobust.types import Image, Prediction, Segmenter, SegmenterInfo, SegmenterOptions

DEFAULT_ATTRIBUTE = "build"
"""What is looked for in a file of which only the path is named."""
_NOT_IDENTITY = {"device", "progress"}
"""Options that change no number, or stand in a run's manifest anyway."""
_FORWARDED = (
    *("encode", "predict", "predict_at", "predict_with_gradients"),
    *("encoder_key", "embedding_type", "device", "model"),
)
"""What a segmenter has, or may have besides."""


@dataclass(frozen=True)
class UserModel:
    """A segmenter that is not built in, before it is built.

    Attributes:
        place: how the user, or the plug-in, says where it is; for messages.
        name: for tables, where it does not say its own.
        found: a builder, a class or a segmenter.
        code: what a run stores of where it comes from.
    """

    place: str
    name: str
    found: Any
    code: Mapping[str, str]

    @property
    def is_built(self) -> bool:
        """Return whether it has to be called first: a class, or what is callable and no model."""
        is_model = isinstance(self.found, torch.nn.Module) or hasattr(self.found, "encode")
        return isinstance(self.found, type) or (callable(self.found) and not is_model)

    @property
    def takes_options(self) -> bool:
        """Return whether it is given `SegmenterOptions`: its first argument has no default.

        An argument `options` may have one.
        """
        if not self.is_built:
            return False
        try:
            parameters = inspect.signature(self.found).parameters
        except ValueError:  # of some that are written in C
            return False
        first = next(iter(parameters.values()), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            return False
        return first.default is first.empty or first.name == "options"

    def build(self, options: SegmenterOptions) -> Segmenter[Any]:
        """Return the segmenter; its info has what was handed over and the hash of its code.

        Raises:
            SegmenterError: its code raises, or what it returns is no segmenter.
        """
        handed = [options] if self.takes_options else []
        with _in_one_line(self.place, done="built"):
            model = self.found(*handed) if self.is_built else self.found
        try:
            segmenter = as_segmenter(model)
        except SegmenterError as error:
            raise SegmenterError(f"{self.place}: {error}") from error
        info = segmenter.info
        if segmenter is not model:
            info = replace(info, name=self.name)
        given = _given(options) if handed else {}
        checkpoint = options.checkpoint if handed else None
        file_name = "" if checkpoint is None else checkpoint.stem
        weights = getattr(model, "model", model)
        info = replace(
            info,
            variant=info.variant or str(given.get("given_variant", "")) or file_name,
            checkpoint_sha256=info.checkpoint_sha256 or _weights_sha256(weights),
            settings={**info.settings, **self.code, **given},
        )
        return _Completed(segmenter, info)


def find_model(place: str) -> UserModel:
    """Return what a file or module has under a name.

    Args:
        place: `FILE.py:NAME`, `FILE.py` for NAME "build", or `package.module:NAME`.

    Raises:
        SegmenterError: there is no such file, module or name, or importing it raises.
    """
    where, colon, attribute = place.rpartition(":")
    if not colon:
        where, attribute = place, DEFAULT_ATTRIBUTE
    is_file = where.endswith(".py")
    module, sha256 = _import_file(Path(where)) if is_file else _import_module(where)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise SegmenterError(f"{where}: has no '{attribute}'. {near_miss(attribute, public)}")
        found = getattr(found, part)
    stem = Path(where).stem if is_file else where.rpartition(".")[2]
    name = stem if attribute == DEFAULT_ATTRIBUTE else attribute
    return UserModel(place, name, found, {"source_sha256": sha256})


def plugin_model(point: EntryPoint, load: Callable[[], object]) -> UserModel:
    """Return what an installed package registers.

    Args:
        point: of the package.
        load: imports it.

    Raises:
        SegmenterError: importing it raises.
    """
    with _in_one_line(f"plug-in {point.value}", done="imported"):
        found = load()
    code = {"source_sha256": _module_sha256(point.module)}
    if point.dist is not None:
        code["distribution"] = f"{point.dist.name} {point.dist.version}"
    return UserModel(f"plug-in {point.value}", point.name, found, code)


def as_segmenter(model: Any) -> Segmenter[Any]:  # noqa: ANN401
    """Return an object with `encode` and `predict` as a segmenter, with an `info` if it has none.

    Raises:
        SegmenterError: it has no `encode` or no `predict`.
    """
    for method in ("encode", "predict"):
        if not callable(getattr(model, method, None)):
            raise SegmenterError(
                f"{type(model).__name__} has no method '{method}'; a segmenter needs encode(images)"
                " and predict(embedding, prompts, *, multimask=False)"
            )
    if hasattr(model, "info"):
        segmenter: Segmenter[Any] = model
        return segmenter
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(model).__name__).lower()
    info = SegmenterInfo(
        name, frozenset({"box", "points"}), checkpoint_sha256=_weights_sha256(model)
    )
    return _Completed(model, info)


class _Completed:
    """A segmenter with another info; all else is its own."""

    encode: Callable[[Sequence[Image]], list[Any]]
    predict: Callable[..., Prediction]

    def __init__(self, segmenter: Any, info: SegmenterInfo) -> None:  # noqa: ANN401
        self.info = info
        self.model = segmenter
        for name in _FORWARDED:
            if hasattr(segmenter, name):
                setattr(self, name, getattr(segmenter, name))


def _given(options: SegmenterOptions) -> dict[str, str | int | float | bool]:
    """Return the options that are not at their default, files by their hash."""
    given = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name not in _NOT_IDENTITY and value != field.default:
            given[f"given_{field.name}"] = _sha256(value) if isinstance(value, Path) else value
    return given


def _sha256(path: Path) -> str:
    """Return the hash of a file, or of a folder's files and their names."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256(b"" if path.is_dir() else str(path).encode())
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _weights_sha256(model: object) -> str:
    """Return a hash of a torch model's weights, "" for what is none."""
    if not isinstance(model, torch.nn.Module):
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + content.numpy().tobytes())
    return digest.hexdigest()


def _import_file(path: Path) -> tuple[ModuleType, str]:
    """Return a file as a module, and the hash of the very source that was run.

    Its folder is added to where modules are looked for, last. A file that has changed is run anew.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SegmenterError(f"{path}: cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    own = hashlib.sha256(f"{path.resolve()} {sha256}".encode()).hexdigest()[:16]
    name = f"samrobust_{path.stem}_{own}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        _search_too(path.resolve().parent)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            with _in_one_line(str(path), done="imported"):
                exec(compile(source, str(path), "exec"), vars(module))  # noqa: S102
        except SamrobustError:
            del sys.modules[name]
            raise
    return sys.modules[name], sha256


def _import_module(name: str) -> tuple[ModuleType, str]:
    _search_too(Path.cwd())
    with _in_one_line(f"module '{name}'", done="imported"):
        module = import_module(name)
    return module, _module_sha256(name)


@functools.cache  # a module that is imported does not change with its file
def _module_sha256(name: str) -> str:
    file = getattr(sys.modules[name], "__file__", None)
    return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _search_too(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextmanager
def _in_one_line(place: str, *, done: str) -> Iterator[None]:
    """Say in one line what a user's code raises, which may be anything, and where."""
    try:
        yield
    except SamrobustError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        frames = [frame for frame in extract_tb(error.__traceback__) if _is_users(frame.filename)]
        at = [f"{Path(frame.filename).name}, line {frame.lineno}" for frame in frames]
        if isinstance(error, SyntaxError):
            at, reason = [f"{Path(error.filename or place).name}, line {error.lineno}"], error.msg
        where = f" ({at[-1]})" if at else ""
        kind = type(error).__name__
        raise SegmenterError(f"{place}: cannot be {done}: {kind}: {reason}{where}") from error


def _is_users(file_name: str) -> bool:
    """Return whether a line of a traceback is neither of this file nor of Python's importing."""
    return "importlib" not in file_name and file_name != __file__
