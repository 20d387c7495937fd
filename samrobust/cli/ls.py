"""`samrobust ls`: what there is to choose from."""

from typing import Annotated

import typer

from samrobust.cli.terminal import out, print_table
from samrobust.datasets import DATASETS, GROUPS
from samrobust.degradations import DEGRADATIONS
from samrobust.metrics import METRICS
from samrobust.protocol import load_protocol, packaged_protocols
from samrobust.registry import Registry, known
from samrobust.report.published import load_expected, packaged_expected
from samrobust.segmenters import SEGMENTERS
from samrobust.segmenters.cards import card_lines, segmenter_card
from samrobust.training.recipe import packaged_recipes, recipe_summary

KINDS = ("protocols", "expected", "recipes", "segmenters", "datasets", "degradations", "metrics")


def ls_command(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.", show_default=False)],
) -> None:
    """List what there is of a kind, one line each.

    Below a segmenter stand its prompts, licence and models: parameters, weights file, whether it
    is in the cache, and what it was trained on.

    Example: samrobust ls protocols
    """
    rows = _rows(known(kind, KINDS, kind="list"))
    if kind == "segmenters":
        _print_segmenters(rows)
    elif out.is_terminal:
        print_table(kind, [kind[:-1], "what it is"], rows)
    else:
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            out.print(f"{name:<{width}}  {summary}", soft_wrap=True, markup=False)


def _print_segmenters(rows: list[tuple[str, str]]) -> None:
    """Print each segmenter with what is known of it below, one line a model."""
    for name, summary in rows:
        out.print(f"{name}  {summary}", soft_wrap=True, markup=False)
        card = segmenter_card(name)
        for line in card_lines(card) if card else ():
            out.print(f"    {line}", soft_wrap=True, markup=False)


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
    if kind == "datasets":
        groups = [(name, f"the group {', '.join(members)}") for name, members in GROUPS.items()]
        return _registry_rows(DATASETS) + groups
    if kind == "degradations":
        return _registry_rows(DEGRADATIONS)
    return _registry_rows(METRICS)


def _protocol_row(name: str) -> tuple[str, str]:
    protocol = load_protocol(name)
    prompts = sum(condition.trials for condition in protocol.conditions)
    gives = {kind for condition in protocol.conditions for kind in condition.degradation.gives}
    return name, (
        f"{protocol.summary}; {len(protocol.conditions)} conditions, {prompts} prompts an object "
        f"({', '.join(sorted(gives))})"
    )


def _registry_rows(registry: Registry[object]) -> list[tuple[str, str]]:
    return [(name, registry.summary(name)) for name in registry.names()]
