"""Summaries as one HTML file that needs nothing else: tables, figures and a gallery of failures."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup

from samrobust import __version__
from samrobust.report.formats import write_text
from samrobust.report.gallery import LARGEST_OUTLINES, Gallery, Photographs, gallery_of
from samrobust.report.layout import Table
from samrobust.report.plots import (
    COLUMN_INCHES,
    DPI,
    STYLE,
    LineStyle,
    figures_of,
    line_styles,
    stem_of,
)
from samrobust.report.summary import Section
from samrobust.report.tables import page_tables
from samrobust.runs.manifest import RunManifest

TEMPLATES = Path(__file__).parent / "templates"
CAPTIONS = {
    "level": "Scores against the level, with 95 % intervals.",
    "stability": "Stability against accuracy.",
    "objects": "Distribution of IoU over the trials of each object.",
    "variance": "Variance of IoU between objects and between trials of one.",
    "heat": "Segmenters against conditions.",
    "cost": "The mean at a glance against the decodes of a prompt, with 95 % intervals.",
    "broken": "Share of objects with a prompt of IoU below 0.5, up to each human percentile.",
    "reliability": "Mean IoU against the segmenter's own estimate of it, in 15 bins of equal mass.",
    "risk": "1 - mIoU of the share of prompts of the highest estimate.",
    "corruptions": "Mean over corruptions by severity and prompt, and their interaction.",
}
SHORT_HASH = 12
"""Characters of a hash that are shown; all of it is in the manifest."""


@dataclass(frozen=True)
class _Picture:
    """A figure in the page; `is_wide` if it has several panels."""

    kind: str
    uri: str
    caption: str
    is_wide: bool


@dataclass(frozen=True)
class _Shown:
    """What the page shows of a section."""

    name: str
    section: Section
    tables: Sequence[Table]
    figures: Sequence[_Picture]
    gallery: Gallery
    notes: Sequence[str]


def write_page(
    sections: Sequence[Section], path: Path, *, progress: Callable[[], None] = lambda: None
) -> Path:
    """Write the page and return its path.

    Args:
        sections: the summaries.
        path: of the file; its folder is made where there is none.
        progress: called once a section.

    Raises:
        RunError: the file cannot be written, or kept masks cannot be read.
    """
    return write_text(path, page(sections, progress=progress))


def page(sections: Sequence[Section], *, progress: Callable[[], None] = lambda: None) -> str:
    """Return the page; everything that names a file, class or segmenter is escaped."""
    photographs, styles = Photographs(), line_styles(sections)
    shown = []
    for section in sections:
        shown.append(
            _Shown(
                stem_of(section),
                section,
                page_tables(section),
                list(_figures(section, styles)),
                gallery_of(section, photographs, room=LARGEST_OUTLINES // len(sections)),
                list(_notes(section)),
            )
        )
        progress()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("page.html").render(
        sections=shown,
        photographs=photographs.shown,
        segmenters=_once(name for section in sections for name in section.table["segmenter"]),
        conditions=_once(name for section in sections for name in section.table["condition"]),
        version=__version__,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),  # noqa: S704
    )


def _figures(section: Section, styles: Mapping[str, LineStyle]) -> Iterator[_Picture]:
    """Yield the figures of a section."""
    with mpl.rc_context(STYLE):
        for name, figure in figures_of(section, styles):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI)
            kind, _, of = name.partition("-")
            uri, caption = _data_uri(buffer.getvalue(), "image/png"), f"{CAPTIONS[kind]} {of}"
            is_wide = figure.get_figwidth() > 1.1 * COLUMN_INCHES
            yield _Picture(kind, uri, caption.strip(), is_wide)


def _notes(section: Section) -> Iterator[str]:
    """Yield what the numbers of a section depend on: protocol, data, segmenters, versions."""
    first = section.runs[0]
    protocol = first.protocol
    yield (
        f"Protocol {section.protocol} v{section.version}, SHA-256 "
        f"{str(protocol.get('sha256', 'unknown'))[:SHORT_HASH]}, seed {protocol['seed']}, "
        f"selection {protocol['selection']}: the mask that counts."
    )
    yield f"Marks: {'; '.join(section.marks)}."
    for run in {run.dataset.fingerprint: run for run in section.runs}.values():
        yield f"Data {run.dataset.label}, {run.n_samples} images, fingerprint {_data(run)}."
    for label, run in zip(section.segmenters, section.runs, strict=False):
        yield f"{label}: {_about(run)}."
    versions = ", ".join(f"{name} {number}" for name, number in first.versions.items())
    yield f"Versions: {versions}."


def _data(run: RunManifest) -> str:
    return run.dataset.fingerprint[:SHORT_HASH]


def _about(run: RunManifest) -> str:
    segmenter = run.segmenter
    words = [
        f"checkpoint SHA-256 {segmenter.checkpoint_sha256[:SHORT_HASH]}"
        if segmenter.checkpoint_sha256
        else "no checkpoint",
        f"frame {segmenter.frame}" if segmenter.frame else "",
        f"encoder {segmenter.dtype}",
        f"on {run.device}",
        f"run {run.created}",
    ]
    return ", ".join(word for word in words if word)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _once(names: Iterator[Any]) -> list[str]:
    return list(dict.fromkeys(str(name) for name in names))
