"""Options that several commands share, and what is built from them."""

import inspect
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperOption

from samrobust.cli.terminal import note_line
from samrobust.datasets import DATASETS, GROUPS, open_dataset, option_name, set_fields
from samrobust.errors import SamrobustError
from samrobust.protocol import load_protocol, with_gradient, with_trials
from samrobust.registry import Registry, known, one_of
from samrobust.segmenters import SEGMENTERS
from samrobust.types import (
    Dataset,
    DatasetOptions,
    EvalProtocol,
    Exif,
    Segmenter,
    SegmenterOptions,
    Selection,
)

T = TypeVar("T")

RUN, DATA, MODEL, SPEED, OUTPUT = "What to run", "Data", "Model", "Speed", "Output"
"""Groups of options in the help of a command."""

Datasets = Annotated[
    list[str] | None,
    typer.Option(
        help="Data set or group, repeatable. See: samrobust ls datasets",
        rich_help_panel=DATA,
        show_default="scenes",
    ),
]
DataRoots = Annotated[
    list[Path] | None,
    typer.Option(
        help="Folder of a data set: once for all, or once per data set, in order.",
        rich_help_panel=DATA,
    ),
]
Splits = Annotated[
    list[str] | None,
    typer.Option(
        help="Split, such as val2017: once for all, or once per data set, in order.",
        rich_help_panel=DATA,
    ),
]
IdFiles = Annotated[
    list[Path] | None,
    typer.Option(
        help="File with the ids of the images to use, one per line: once for all, or once per data "
        "set, in order.",
        rich_help_panel=DATA,
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option(
        help="coco: folder of the images; with --annotations, instead of --data-root.",
        rich_help_panel=DATA,
    ),
]
AnnotationFile = Annotated[
    Path | None,
    typer.Option(help="coco: instance annotation file; with --images.", rich_help_panel=DATA),
]
Categories = Annotated[
    list[str] | None,
    typer.Option(
        help="coco: only objects of this category, repeatable.",
        rich_help_panel=DATA,
        show_default="all",
    ),
]
MinArea = Annotated[
    int,
    typer.Option(help="coco: only objects of at least this many pixels.", rich_help_panel=DATA),
]
Labels = Annotated[
    bool,
    typer.Option(
        "--labels",
        help="folder: mask files are label maps; every value except 0 is an object.",
        rich_help_panel=DATA,
    ),
]
Void = Annotated[
    list[int] | None,
    typer.Option(
        help="folder: label-map value that is neither object nor background, repeatable.",
        rich_help_panel=DATA,
        show_default="255",
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", help="folder: also read sub-folders.", rich_help_panel=DATA)
]
ExifOption = Annotated[
    str,
    typer.Option(
        "--exif",
        help="EXIF orientation of images: auto (decided by the mask size), apply or ignore.",
        rich_help_panel=DATA,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="coco: refuse objects without area instead of leaving them out.",
        rich_help_panel=DATA,
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        help="Model variant, such as vit_b: once for all segmenters that have variants, or once "
        "for each of them, in order.",
        rich_help_panel=MODEL,
    ),
]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option(
        help="Weights file: once for all segmenters that take one, or once for each of them; the "
        "word default for a segmenter's own.",
        rich_help_panel=MODEL,
        show_default="downloaded and cached",
    ),
]
BaseCheckpoints = Annotated[
    list[Path] | None,
    typer.Option(
        help="Weights file of the SAM that --checkpoint was trained for.", rich_help_panel=MODEL
    ),
]
FrameName = Annotated[
    str,
    typer.Option(
        help="How images are resized for a SAM: longest-side (keeps the aspect ratio) or squash.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.", rich_help_panel=SPEED)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Prompts per forward pass; halved on out-of-memory.",
        show_default="16; 128 on a GPU",
        rich_help_panel=SPEED,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that load images.",
        rich_help_panel=SPEED,
        show_default="number of cores - 1, at most 8",
    ),
]
BoxFormatName = Annotated[
    str,
    typer.Option(
        "--box-format",
        help="How the column box of a file of prompts is written: corners, xywh, or auto (told "
        "from the numbers, where they tell it).",
        rich_help_panel=RUN,
    ),
]
ResultsFolder = Annotated[
    Path, typer.Option("--out", help="Folder of all runs.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=OUTPUT)]
DEFAULT_DATASETS = ["scenes"]
DEFAULT_FILE = "default"
"""In place of a weights file: the segmenter's own."""
_LOG = logging.getLogger(__name__)


class _Flag(TyperOption):
    """An option without a value, whose help names no type."""

    def display_type_rich(self, ctx: object) -> None:
        """Return no type."""


class Command(TyperCommand):
    """A command that says when it is interrupted.

    Its flags show no type, and its paragraphs wrap at the terminal's width.
    """

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **more)
        self.help, self.epilog = _unwrapped(self.help), _unwrapped(self.epilog)
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.__class__ = _Flag

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the command; Ctrl-C prints one line and exits with 130."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in place of `__main__`'s
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note_line("interrupted")
            raise typer.Exit(130) from None


def _unwrapped(text: str | None) -> str:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def typed_command() -> str:
    """Return what was typed, as text that any file can hold."""
    typed = shlex.join(["samrobust", *sys.argv[1:]])
    return os.fsencode(typed).decode(errors="replace")


def check_number(option: str, value: int | None, *, least: int) -> None:
    """Raise a SamrobustError if the value of an option is smaller than it may be."""
    if value is not None and value < least:
        raise SamrobustError(f"{option} must be at least {least}, got {value}")


def reading(
    images: Path | None = None,
    annotations: Path | None = None,
    category: Sequence[str] | None = None,
    min_area: int = 0,
    *,
    labels: bool = False,
    void: Sequence[int] | None = None,
    recursive: bool = False,
    exif: str = "auto",
    strict: bool = False,
) -> DatasetOptions:
    """Return how the options say that data sets are read, without root and split."""
    if void is not None and not labels:
        raise SamrobustError(f"--void {void[0]} is for label maps: add --labels")
    return DatasetOptions(
        images=images,
        annotations=annotations,
        categories=tuple(category or ()),
        min_area=min_area,
        labels=labels,
        void=DatasetOptions.void if void is None else tuple(void),
        recursive=recursive,
        exif=one_of(Exif, exif, kind="--exif"),
        strict=strict,
    )


def check_folder(option: str, folder: Path) -> None:
    """Raise a SamrobustError where a folder cannot be written, before hours of work are lost."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{option} {folder}: cannot be written: {error.strerror}"
        raise SamrobustError(reason) from error


def chosen_datasets(
    names: list[str] | None,
    roots: list[Path] | None,
    splits: list[str] | None,
    ids: list[Path] | None = None,
    how: DatasetOptions | None = None,
) -> list[Dataset]:
    """Return the data sets that the options name; a group stands for its members.

    Raises:
        SamrobustError: a name is unknown, options do not match names, or a data set is missing.
    """
    names = names or DEFAULT_DATASETS
    for name in names:
        known(name, [*DATASETS.names(), *GROUPS], kind="dataset")
    groups = [GROUPS.get(name, (name,)) for name in names]
    first = [members[0] for members in groups]
    root_of = for_each(first, roots or [], option="--data-root", registry=DATASETS)
    split_of = for_each(first, splits or [], option="--split", registry=DATASETS)
    ids_of = for_each(first, ids or [], option="--ids", registry=DATASETS)
    how = how or DatasetOptions()
    for field in set_fields(how):
        if not any(DATASETS.takes(name, option_name(field)) for name in first):
            raise SamrobustError(f"{', '.join(names)} takes no {option_name(field)}")
    opened: list[Dataset] = []
    for members, root, split, id_file in zip(groups, root_of, split_of, ids_of, strict=True):
        accepted = {
            field: getattr(how, field)
            for field in set_fields(how)
            if DATASETS.takes(members[0], option_name(field))
        }
        options = DatasetOptions(root, split or "", **accepted)
        opened += [open_dataset(member, options, ids=id_file) for member in members]
    return opened


def chosen_protocols(
    names: Sequence[str],
    prompts: Path | None,
    datasets: Sequence[Dataset],
    *,
    boxes: Path | None = None,
    box_format: str = "auto",
    trials: int | None = None,
    selection: str | None = None,
    gradient: bool = False,
) -> list[EvalProtocol]:
    """Return the protocols that the options name, or the recorded prompts in their place.

    Raises:
        SamrobustError: a file cannot be used, a name is unknown, or both are given.
    """
    option, file = ("--prompts", prompts) if boxes is None else ("--boxes", boxes)
    if file is None:
        protocols = [load_protocol(name) for name in names]
    elif names:
        raise SamrobustError(f"{option} {file} takes the place of --protocol {names[0]}")
    elif prompts is not None and boxes is not None:
        raise SamrobustError(f"--boxes {boxes} takes the place of --prompts {prompts}")
    elif boxes is not None:
        from samrobust.prompt_files import load_detections

        if len(datasets) > 1:
            raise SamrobustError(f"--boxes {boxes} is of one data set, got {len(datasets)}")
        protocols = [load_detections(boxes, datasets[0])]
    else:
        from samrobust.prompt_files import BoxFormat, load_prompts

        form = one_of(BoxFormat, box_format, kind="--box-format")
        protocols = [load_prompts(file, datasets[0], boxes=form)]
    if trials is not None:
        protocols = [with_trials(protocol, trials) for protocol in protocols]
    if gradient:
        protocols = [with_gradient(protocol) for protocol in protocols]
    if selection is not None:
        chosen = one_of(Selection, selection, kind="selection")
        protocols = [replace(protocol, selection=chosen) for protocol in protocols]
    return protocols


@dataclass(frozen=True)
class ChosenSegmenter:
    """A segmenter by name, with its own options."""

    name: str
    variant: str = ""
    checkpoint: Path | None = None
    base_checkpoint: Path | None = None
    output: str = ""


def choose_segmenters(
    names: Sequence[str],
    *,
    variants: Sequence[str],
    checkpoints: Sequence[Path],
    base_checkpoints: Sequence[Path],
    outputs: Sequence[str],
) -> list[ChosenSegmenter]:
    """Return the segmenters that the options name.

    Raises:
        SamrobustError: a name is unknown, or options do not match names.
    """
    for name in names:
        SEGMENTERS.known(name)
    of_each = (
        _of_each(names, variants, "--variant"),
        _of_each(names, checkpoints, "--checkpoint"),
        _of_each(names, base_checkpoints, "--base-checkpoint"),
        _of_each(names, outputs, "--output"),
    )
    return [
        ChosenSegmenter(name, variant or "", _own_file(checkpoint), _own_file(base), output or "")
        for name, variant, checkpoint, base, output in zip(names, *of_each, strict=True)
    ]


def build_segmenter(chosen: ChosenSegmenter, options: SegmenterOptions) -> Segmenter[Any]:
    """Return a segmenter, ready to run.

    Args:
        chosen: its name and its own options.
        options: those that all segmenters share.

    Raises:
        SegmenterError: an option is not supported, or the weights cannot be loaded.
    """
    own = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    return SEGMENTERS.load(own.pop("name"))(replace(options, **own))


def for_each(
    names: Sequence[str], values: Sequence[T], *, option: str, registry: Registry[object]
) -> list[T | None]:
    """Return the value of an option for each name: the same for all, or one for each.

    Names that take no such option get None.

    Raises:
        SamrobustError: no name takes one, or there is another number of values than of names that
            do.
    """
    if not values:
        return [None] * len(names)
    takes = [registry.takes(name, option) for name in names]
    if not any(takes):
        raise SamrobustError(f"{', '.join(names)} takes no {option}, got {values[0]}")
    if len(values) == 1:
        return [values[0] if take else None for take in takes]
    if len(values) != sum(takes):
        raise SamrobustError(
            f"{option} is given {len(values)} times, for {sum(takes)} {registry.kind}s; "
            "give it once for all, or once each"
        )
    left = iter(values)
    return [next(left) if take else None for take in takes]


def _own_file(path: Path | None) -> Path | None:
    return None if path == Path(DEFAULT_FILE) else path


def _of_each(names: Sequence[str], values: Sequence[T], option: str) -> list[T | None]:
    """Return an option's value for each segmenter, and note whom one that is given once reaches."""
    found = for_each(names, values, option=option, registry=SEGMENTERS)
    if len(names) > 1 and len(values) == 1:
        reached = [name for name, value in zip(names, found, strict=True) if value is not None]
        _LOG.info("%s %s is given to %s", option, values[0], ", ".join(reached))
    return found


Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of cached image embeddings of SAMs.",
        rich_help_panel=SPEED,
        show_default="no cache",
    ),
]
CacheSize = Annotated[
    float,
    typer.Option(
        help="Size of --cache in GB; the least recently used embeddings are deleted.",
        rich_help_panel=SPEED,
    ),
]
DEFAULT_CACHE_SIZE = 8.0
"""GB: the embeddings of 1,900 images, or of 630 of an HQ-SAM."""
_BYTES = 1e9
"""Of a GB."""


def with_caches(
    segmenters: Sequence[Segmenter[Any]], folder: Path | None, size_gb: float
) -> list[Segmenter[Any]]:
    """Return segmenters that cache their embeddings in a folder, unchanged if it is None.

    Raises:
        SamrobustError: the folder is a file, or the size is not positive.
    """
    if not 0 < size_gb < float("inf"):
        raise SamrobustError(f"--cache-size must be above 0, got {size_gb:g}")
    if folder is None:
        return list(segmenters)
    if folder.exists() and not folder.is_dir():
        raise SamrobustError(f"--cache {folder}: is not a folder")

    from samrobust.segmenters.embedding_cache import EmbeddingCache, with_cache

    cache = EmbeddingCache(folder, int(size_gb * _BYTES))
    return [with_cache(segmenter, cache) for segmenter in segmenters]
