"""Fill pages of the documentation from the code: the command line and the protocols."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from typer.core import TyperCommand

from samrobust.cli import app

PROTOCOLS = Path(__file__).parent.parent / "protocols"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Replace the markers of a page by what they stand for."""
    if page.file.src_uri == "reference/cli.md":
        commands = "\n".join(_commands(typer.main.get_command(app), "samrobust"))
        return markdown.replace("<!-- commands -->", commands)
    if page.file.src_uri == "reference/protocols.md":
        return markdown.replace("<!-- protocols -->", "\n".join(_protocols()))
    return markdown


def _commands(command: TyperCommand, path: str) -> Iterator[str]:
    """Yield the lines of a command and of all commands below it; what is hidden is left out."""
    children = getattr(command, "commands", {})
    if not children:
        yield from _command(command, path)
    for name, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def _command(command: TyperCommand, path: str) -> Iterator[str]:
    parameters = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    names = " ".join(each.metavar or each.name for each in arguments)
    yield f"## `{path}`\n"
    yield f"{_plain(command.help)}\n"
    yield f"```\n{path} {names}{' ' if names else ''}[OPTIONS]\n```\n"
    yield "| option | meaning | default |"
    yield "| --- | --- | --- |"
    for each in parameters:
        name = ", ".join(f"`{option}`" for option in each.opts)
        if each.param_type_name == "argument":
            name = f"`{each.metavar or each.name}`"
        default = each.default
        shown = "" if callable(default) or default in (None, False, ()) else f"`{default}`"
        yield f"| {name} | {_plain(getattr(each, 'help', ''))} | {shown} |"
    yield ""
    if command.epilog:
        yield f"```\n{command.epilog.strip()}\n```\n"


def _plain(text: str | None) -> str:
    """Return help text for a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


def _protocols() -> Iterator[str]:
    """Yield one table of all protocols, and of each its conditions."""
    yield "| protocol | version | prompts | trials | conditions | source |"
    yield "| --- | --- | --- | --- | --- | --- |"
    loaded = [tomllib.loads(path.read_text()) for path in sorted(PROTOCOLS.glob("*.toml"))]
    for protocol in loaded:
        names = ", ".join(f"`{condition['name']}`" for condition in protocol["conditions"])
        yield (
            f"| `{protocol['name']}` | {protocol['version']} | {protocol['summary']} "
            f"| {protocol['trials']} | {names} | {protocol['source']} |"
        )
