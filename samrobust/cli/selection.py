"""Which stored runs a command is about, and what their segmenters are called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.errors import RunError, SamrobustError
from samrobust.registry import known

if TYPE_CHECKING:
    from samrobust.runs.manifest import RunManifest
    from samrobust.runs.store import Run

RESULTS = Path("results")
_PANEL = "Which runs"

RunFolders = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN",
        help="Folders of runs, or a folder that holds some; without any: results.",
        show_default=False,
    ),
]
OfProtocols = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol", help="Only runs of this protocol, repeatable.", rich_help_panel=_PANEL
    ),
]
OfDatasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        help="Only runs on this data set, as coco or coco/val2017, repeatable.",
        rich_help_panel=_PANEL,
    ),
]
OfSegmenters = Annotated[
    list[str] | None,
    typer.Option(
        "--segmenter",
        help="Only runs of this segmenter, as sam or 'sam vit_b', repeatable; in this order.",
        rich_help_panel=_PANEL,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="NAME=TEXT",
        help="Another name in tables, figures and page, of a segmenter or of a run's folder; "
        "repeatable.",
    ),
]
StrictImages = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse runs with other images instead of taking those that all of them have.",
    ),
]


@dataclass(frozen=True)
class Wanted:
    """What runs are asked for: those of any of the names of each kind, of all where none is named.

    Attributes:
        protocols: names.
        datasets: names or labels, or groups.
        segmenters: names or labels; runs are in this order, then as they lie.
    """

    protocols: Sequence[str] = ()
    datasets: Sequence[str] = ()
    segmenters: Sequence[str] = ()


def run_folders(paths: Sequence[Path] | None, wanted: Wanted) -> list[Path]:
    """Return the folders of the runs that are asked for.

    Args:
        paths: folders of runs or folders that hold some, `RESULTS` where none is named; files, as
            `results/*` may match them, are passed over.
        wanted: which of these runs.

    Raises:
        SamrobustError: there are none, a name is not that of any run, or a manifest cannot be read.
    """
    from samrobust.runs.manifest import MANIFEST, read_manifest

    folders: list[Path] = []
    for path in only_folders(paths or [RESULTS]):
        inside = sorted(found.parent for found in path.glob(f"*/{MANIFEST}"))
        folders += [path] if (path / MANIFEST).exists() or not inside else inside
    if wanted == Wanted():
        return folders
    manifests = {folder: read_manifest(folder) for folder in folders}
    chosen = folders
    for option, names, names_of in (
        ("protocol", wanted.protocols, _protocol_names),
        ("dataset", wanted.datasets, _dataset_names),
        ("segmenter", wanted.segmenters, _segmenter_names),
    ):
        chosen = _only(chosen, manifests, names, names_of, option=option)
    order = list(wanted.segmenters)

    def place(folder: Path) -> int:
        return min(map(order.index, _segmenter_names(manifests[folder]) & {*order}), default=0)

    return sorted(chosen, key=place)


def only_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the folders among the paths: `results/*` may match other files too."""
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        raise RunError(f"{paths[0]}: there is no such run; runs are the folders in results/")
    return folders


def with_labels(runs: "Sequence[Run]", labels: Sequence[str] | None) -> "list[Run]":
    """Return the runs with other names in tables.

    Args:
        runs: stored ones.
        labels: "NAME=TEXT" each, NAME a run's folder or the label or name of a segmenter.

    Raises:
        SamrobustError: one is no "NAME=TEXT", or its name is that of no run.
    """
    texts = {}
    folders = [run.folder.name for run in runs]
    segmenters = {name for run in runs for name in _segmenter_names(run.manifest)}
    for label in labels or []:
        name, equals, text = (part.strip() for part in label.partition("="))
        if not (name and equals and text):
            raise SamrobustError(f"--label must be NAME=TEXT, got '{label}'")
        if name not in folders:
            known(name, segmenters, kind="segmenter or folder of these runs")
        texts[name] = text
    return [_labelled(run, texts) for run in runs]


def _labelled(run: "Run", texts: Mapping[str, str]) -> "Run":
    segmenter = run.manifest.segmenter
    names = (run.folder.name, segmenter.label, segmenter.name)
    return replace(run, label=next((texts[name] for name in names if name in texts), run.label))


def in_words(folder: Path) -> str:
    """Return what a run is, for messages."""
    from samrobust.runs.manifest import read_manifest

    manifest = read_manifest(folder)
    protocol, segmenter = manifest.protocol["name"], manifest.segmenter.label
    return f"{segmenter} by {protocol} on {manifest.dataset.label} ({folder})"


def _only(
    folders: Sequence[Path],
    manifests: "Mapping[Path, RunManifest]",
    names: Sequence[str],
    names_of: "Callable[[RunManifest], set[str]]",
    *,
    option: str,
) -> list[Path]:
    """Return the folders whose run has one of the names, all where none is named."""
    there = {name for folder in folders for name in names_of(manifests[folder])}
    for name in names:
        known(name, there, kind=f"{option} of these runs,")
    wanted = set(names)
    return [folder for folder in folders if not wanted or names_of(manifests[folder]) & wanted]


def _protocol_names(manifest: "RunManifest") -> set[str]:
    return {str(manifest.protocol["name"])}


def _dataset_names(manifest: "RunManifest") -> set[str]:
    dataset = manifest.dataset
    names = {dataset.name, dataset.key, dataset.label}
    return names | {dataset.group} if dataset.group else names


def _segmenter_names(manifest: "RunManifest") -> set[str]:
    return {manifest.segmenter.name, manifest.segmenter.label}
