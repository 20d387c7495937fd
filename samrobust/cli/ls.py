"""`samrobust ls`: list protocols, segmenters, data sets and whatever else can be named."""

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.terminal import out, print_table
from samrobust.datasets import DATASETS, GROUPS
from samrobust.degradations import CORRUPTIONS, DEGRADATIONS, SEARCHES
from samrobust.files import cache_folder
from samrobust.metrics import METRICS
from samrobust.protocol import load_protocol, packaged_protocols
from samrobust.provenance import origins_of_training
from samrobust.registry import Registry, known
from samrobust.report.published import load_expected, packaged_expected
from samrobust.segmenters import REMEDIES, ROWS, SEGMENTERS, SegmenterEntry
from samrobust.training.recipe import packaged_recipes, recipe_summary
from samrobust.types import Search

EXAMPLE = "Example: samrobust ls protocols"
KINDS = (
    "protocols",
    "expected",
    "recipes",
    "segmenters",
    "remedies",
    "datasets",
    "degradations",
    "searches",
    "corruptions",
    "metrics",
)


def ls_command(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"What to list: {', '.join(KINDS)}; without it, these kinds.", show_default=False
        ),
    ] = "",
) -> None:
    """List available protocols, segmenters, data sets and other names, one per line.

    Segmenters are listed with prompts, licence and models: number of parameters, weights file,
    whether it is cached, and the data sets that it was trained on.
    """
    if not kind:
        for name in KINDS:
            out.print(f"samrobust ls {name}")
        return
    rows = _rows(known(kind, KINDS, kind="list"))
    if kind == "segmenters":
        _print_segmenters(rows)
    elif out.is_terminal:
        print_table(kind, [kind[:-1], "description"], rows)
    else:
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            out.print(f"{name:<{width}}  {summary}", soft_wrap=True, markup=False)


def _print_segmenters(rows: list[tuple[str, str]]) -> None:
    """Print each segmenter, and below it one line per model."""
    for name, summary in rows:
        out.print(f"{name}  {summary}", soft_wrap=True, markup=False)
        for line in segmenter_lines(ROWS[name]) if name in ROWS else ():
            out.print(f"    {line}", soft_wrap=True, markup=False)


def segmenter_lines(row: SegmenterEntry) -> Iterator[str]:
    """Yield a line for all models of a built-in segmenter, then one line per model."""
    kinds = {"box": "boxes", "points": "points", "mask": "masks"}
    prompts = ", ".join(kinds[kind] for kind in row.prompts)
    yield f"prompts {prompts}; licence {row.licence}"
    for variant, checkpoint in row.checkpoints.items():
        place = "in" if (cache_folder() / checkpoint.file_name).exists() else "not in"
        weights = f"{checkpoint.file_name}, {_size(checkpoint.n_bytes)}, {place} the cache"
        yield _model_line(variant, checkpoint.n_parameters, weights, row.trained_on)
    for variant, model in row.models.items():
        size = "" if model.n_bytes is None else f", {_size(model.n_bytes)}"
        digest = f"SHA-256 {model.sha256[:8]}" if model.sha256 else "SHA-256 not known"
        weights = f"{model.model_id}{size}; licence {model.licence}; {digest}"
        yield _model_line(variant, model.n_parameters, weights, model.trained_on)
    for variant, file_name in row.packaged.items():
        yield _packaged_line(variant, file_name)
    if row.weights:
        yield _model_line("", row.n_parameters, row.weights, row.trained_on)


def _packaged_line(variant: str, file_name: str) -> str:
    """Return the line of a model of the package, read from the header of its file."""
    path = _packaged_path(file_name)
    if not path.exists():
        return _model_line(variant, None, f"{file_name}, not in the package: train it", ())
    n_parameters, header = _read_header(path)
    weights = f"{file_name}, {_size(path.stat().st_size)}, in the package"
    trained_on = list(origins_of_training(header))
    if "base-name" in header:
        (base,) = ROWS[header["base-name"]].packaged.values()
        weights += f"; added to {header['base-name']}"
        trained_on = [*origins_of_training(_read_header(_packaged_path(base))[1]), *trained_on]
    return _model_line(variant, n_parameters, weights, tuple(dict.fromkeys(trained_on)))


def _packaged_path(file_name: str) -> Path:
    return Path(str(files("samrobust.segmenters"))) / "weights" / file_name


def _read_header(path: Path) -> tuple[int, dict[str, str]]:
    """Return the number of parameters in a safetensors file, and its metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        return sum(sizes), file.metadata() or {}


def _model_line(
    variant: str, n_parameters: int | None, weights: str, trained_on: Sequence[str]
) -> str:
    count = "" if n_parameters is None else f"{_count(n_parameters)}; "
    seen = f"; trained on {', '.join(trained_on)}" if trained_on else ""
    return f"{variant} {count}{weights}{seen}".strip()


def _count(n_parameters: int) -> str:
    if n_parameters == 0:
        return "no parameters"
    if n_parameters >= 10**6:
        return f"{n_parameters / 1e6:.1f} M parameters"
    return f"{n_parameters:,} parameters"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 10**6 else f"{n_bytes / 1e3:,.0f} kB"


def _rows(kind: str) -> list[tuple[str, str]]:
    if kind == "protocols":
        return [_protocol_row(name) for name in packaged_protocols()]
    if kind == "expected":
        files = {name: load_expected(name) for name in packaged_expected()}
        return [(name, f"{file.summary}; {len(file.rows)} values") for name, file in files.items()]
    if kind == "recipes":
        return [(name, recipe_summary(name)) for name in packaged_recipes()]
    if kind == "segmenters":
        return _registry_rows(SEGMENTERS)
    if kind == "remedies":
        return _registry_rows(REMEDIES)
    if kind == "datasets":
        groups = [(name, f"the group {', '.join(members)}") for name, members in GROUPS.items()]
        return _registry_rows(DATASETS) + groups
    if kind == "degradations":
        return _registry_rows(DEGRADATIONS)
    if kind == "searches":
        return _registry_rows(SEARCHES)
    if kind == "corruptions":
        return _registry_rows(CORRUPTIONS)
    return _registry_rows(METRICS)


def _protocol_row(name: str) -> tuple[str, str]:
    from samrobust.degradations.human import median_percentile

    protocol = load_protocol(name)
    prompts = sum(condition.trials for condition in protocol.conditions)
    found = [
        median_percentile(condition.degradation)
        for condition in protocol.conditions
        if condition.turn is None or condition.turn.is_first
    ]
    percentiles = [f"{value:.0f}" for value in found if value is not None]
    human = f"; median boxes at human percentiles {', '.join(percentiles)}" if percentiles else ""
    searches = [
        each.degradation for each in protocol.conditions if isinstance(each.degradation, Search)
    ]
    asked = f", searched among {max(each.n_asked for each in searches)}" if searches else ""
    gives = {kind for condition in protocol.conditions for kind in condition.gives}
    return name, (
        f"{protocol.summary}; {len(protocol.conditions)} conditions, {prompts} prompts an object"
        f"{asked} ({', '.join(sorted(gives))}){human}"
    )


def _registry_rows(registry: Registry[object]) -> list[tuple[str, str]]:
    return [(name, registry.summary(name)) for name in registry.names()]
