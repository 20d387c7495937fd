"""Fill pages of the documentation from the code: command line, registries and protocols."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from typer.core import TyperCommand

from samrobust.cli import app
from samrobust.datasets import DATASETS, GROUPS
from samrobust.degradations import CORRUPTIONS, DEGRADATIONS, SEARCHES
from samrobust.degradations.human import median_percentile
from samrobust.metrics import METRICS
from samrobust.protocol import condition_name, load_protocol
from samrobust.segmenters import REMEDIES, ROWS
from samrobust.types import Condition

PROTOCOLS = Path(__file__).parent.parent / "protocols"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Replace the markers of a page of the reference by what they stand for."""
    if page.file.src_uri.startswith("reference/"):
        for name, lines in MARKERS.items():
            marker = f"<!-- {name} -->"
            if marker in markdown:
                markdown = markdown.replace(marker, "\n".join(lines()))
    return markdown


def _all_commands() -> Iterator[str]:
    yield from _commands(typer.main.get_command(app), "samrobust")


def _commands(command: TyperCommand, path: str) -> Iterator[str]:
    """Yield the lines of a command and of all commands below it; what is hidden is left out."""
    children = getattr(command, "commands", {})
    if not children:
        yield from _command(command, path)
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def _command(command: TyperCommand, path: str) -> Iterator[str]:
    parameters = [option for option in command.params if not getattr(option, "hidden", False)]
    arguments = [option for option in parameters if option.param_type_name == "argument"]
    names = " ".join((option.metavar or option.name).upper() for option in arguments)
    yield f"## `{path}`\n"
    examples = []
    for paragraph in (command.help or "").split("\n\n"):
        text = _plain(paragraph)
        if text.startswith("Example: "):
            examples.append(text.removeprefix("Example: ").replace("\\|", "|"))
        else:
            yield f"{text}\n"
    yield f"```\n{path} {names}{' ' if names else ''}[OPTIONS]\n```\n"
    if parameters:
        yield "| option | meaning | default |"
        yield "| --- | --- | --- |"
    for option in parameters:
        name = ", ".join(f"`{spelling}`" for spelling in option.opts)
        if option.param_type_name == "argument":
            name = f"`{(option.metavar or option.name).upper()}`"
        default = option.default
        shown = "" if callable(default) or default in (None, False, (), "") else f"`{default}`"
        yield f"| {name} | {_plain(getattr(option, 'help', ''))} | {shown} |"
    yield ""
    if command.epilog:
        examples.append(command.epilog.strip())
    for example in examples:
        yield f"```\n{example}\n```\n"


def _plain(text: str | None) -> str:
    """Return help text for a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _protocols() -> Iterator[str]:
    """Yield one table of all protocols, and of each its conditions."""
    yield "| protocol | version | prompts | trials | conditions | source |"
    yield "| --- | --- | --- | --- | --- | --- |"
    loaded = [tomllib.loads(path.read_text()) for path in sorted(PROTOCOLS.glob("*.toml"))]
    for protocol in loaded:
        names = ", ".join(
            f"`{condition_name(condition)}`{_percentile(condition)}"
            for condition in load_protocol(protocol["name"]).conditions
            if condition.image is None and (condition.turn is None or condition.turn.is_first)
        )
        if "images" in protocol:
            names += f"; each also on {len(protocol['images'])} corruptions of the image"
        yield (
            f"| `{protocol['name']}` | {protocol['version']} | {protocol['summary']} "
            f"| {protocol['trials']} | {names} | {protocol['source']} |"
        )


def _percentile(condition: Condition) -> str:
    percentile = median_percentile(condition.degradation)
    return "" if percentile is None else f" (p{percentile:.0f})"


def _degradations() -> Iterator[str]:
    """Yield a table of the registered degradations; parameters are the fields of their classes."""
    yield "| degradation | what it does; parameters | type and default | gives |"
    yield "| --- | --- | --- | --- |"
    for name in DEGRADATIONS.names():
        degradation: Any = DEGRADATIONS.load(name)
        parameters = ", ".join(_parameter(field) for field in fields(degradation))
        gives = ", ".join(sorted(degradation.gives))
        yield f"| [`{name}`](#{name}) | {DEGRADATIONS.summary(name)} | {parameters} | {gives} |"


def _searches() -> Iterator[str]:
    """Yield a table of the registered searches; parameters are the fields of their classes."""
    yield "| search | what it takes | parameters |"
    yield "| --- | --- | --- |"
    for name in SEARCHES.names():
        search: Any = SEARCHES.load(name)
        parameters = ", ".join(_parameter(field) for field in fields(search))
        yield f"| `{name}` | {SEARCHES.summary(name)} | {parameters} |"


def _remedies() -> Iterator[str]:
    """Yield a table of the registered remedies; arguments are the fields of their classes."""
    yield "| remedy | what it does | arguments and default | decodes |"
    yield "| --- | --- | --- | --- |"
    for name in REMEDIES.names():
        remedy: Any = REMEDIES.load(name)
        arguments = ", ".join(f"`{field.name} = {field.default}`" for field in fields(remedy))
        yield f"| `{name}` | {REMEDIES.summary(name)} | {arguments or '-'} | {remedy().decodes} |"


def _corruptions() -> Iterator[str]:
    """Yield a table of the registered corruptions with the parameters of their severities."""
    yield "| corruption | what it does | level at severity 1, 2, 3, 4, 5 |"
    yield "| --- | --- | --- |"
    for name in CORRUPTIONS.names():
        corruption: Any = CORRUPTIONS.load(name)
        levels = "; ".join(map(str, corruption.levels)) if hasattr(corruption, "levels") else "-"
        yield f"| `{name}` | {CORRUPTIONS.summary(name).partition(';')[0]} | {levels} |"


def _parameter(field: Any) -> str:  # noqa: ANN401
    default = "" if field.default is MISSING else f" = {field.default}"
    kind = getattr(field.type, "__name__", field.type)
    return f"`{field.name}: {kind}{default}`"


def _metrics() -> Iterator[str]:
    yield "| metric | what it is | column | unit | better | one value per |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in METRICS.names():
        metric = METRICS.load(name)
        yield (
            f"| `{name}` | {METRICS.summary(name)} | {metric.label or name} | {metric.unit or '-'} "
            f"| {'higher' if metric.higher_is_better else 'lower'} "
            f"| {'object and condition' if metric.over_trials else 'trial'} |"
        )


def _segmenters() -> Iterator[str]:
    """Yield a table of the built-in segmenters and one of their published weights."""
    yield "| segmenter | what it is | prompts | options of its own | licence of the weights |"
    yield "| --- | --- | --- | --- | --- |"
    for name, row in ROWS.items():
        options = ", ".join(f"`{option}`" for option in row.takes or ()) or "-"
        yield f"| `{name}` | {row.summary} | {', '.join(row.prompts)} | {options} | {row.licence} |"
    yield "\nWeights that are downloaded when they are first used, and checked by SHA-256:\n"
    yield "| segmenter | variant | parameters | file | MB | SHA-256 begins | trained on |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, row in ROWS.items():
        for variant, weights in row.checkpoints.items():
            yield (
                f"| `{name}` | `{variant}` | {weights.n_parameters:,} | [{weights.file_name}]"
                f"({weights.url}) | {weights.n_bytes / 1e6:,.1f} | `{weights.sha256[:12]}` "
                f"| {', '.join(row.trained_on)} |"
            )

    yield "\nPublished models of the transformers library, by the names that `--variant` takes:\n"
    yield "| segmenter | variant | id | parameters | MB | licence | SHA-256 begins | trained on |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, row in ROWS.items():
        for variant, model in row.models.items():
            size = "not known" if model.n_bytes is None else f"{model.n_bytes / 1e6:,.1f}"
            digest = f"`{model.sha256[:12]}`" if model.sha256 else "not known"
            yield (
                f"| `{name}` | `{variant}` | `{model.model_id}` | {model.n_parameters / 1e6:.1f} M "
                f"| {size} | {model.licence} | {digest} | {', '.join(model.trained_on)} |"
            )


def _datasets() -> Iterator[str]:
    """Yield a table of the registered data sets and one of the groups."""
    yield "| data set | what it is |"
    yield "| --- | --- |"
    for name in DATASETS.names():
        yield f"| `{name}` | {DATASETS.summary(name)} |"
    yield "\n| group | data sets |"
    yield "| --- | --- |"
    for name, members in GROUPS.items():
        yield f"| `{name}` | {', '.join(f'`{member}`' for member in members)} |"


MARKERS: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands": _all_commands,
    "protocols": _protocols,
    "degradations": _degradations,
    "searches": _searches,
    "corruptions": _corruptions,
    "metrics": _metrics,
    "segmenters": _segmenters,
    "remedies": _remedies,
    "datasets": _datasets,
}
"""Marker of a page, as `<!-- commands -->`, and what yields the lines in its place."""
