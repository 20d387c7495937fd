"""Any text, JSON or picture gives its readers a value or a SamrobustError, and nothing else."""

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from samrobust.datasets.coco import CocoDataset, decode_mask, encode_mask
from samrobust.datasets.coco import decode_run_lengths as decode_counts
from samrobust.datasets.images import read_image, read_mask
from samrobust.errors import RunError, SamrobustError
from samrobust.protocol import load_protocol
from samrobust.report.summary import summarise
from samrobust.report.tables import terminal_tables
from samrobust.runs.store import read_run
from samrobust.training.recipe import load_recipe
from samrobust.types import DatasetOptions
from tests.conftest import rectangle
from tests.hostile import PROTOCOL, RECIPE, SIZE_HW, png
from tests.runs import MadeUp

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = (
    st.integers(-3, 5)
    | st.sampled_from([10**12, -(10**12), 2**63, 2**64, 10**400, 1e300])
    | st.floats()
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
MASK = rectangle(SIZE_HW, (3, 4, 20, 25))
TABLE = {
    "images": [{"id": 9, "file_name": "p.png", "width": 61, "height": 40}],
    "categories": [{"id": 2, "name": "cup"}],
    "annotations": [
        {"id": 7, "image_id": 9, "category_id": 2, "segmentation": [[3, 4, 21, 4, 21, 26]]},
        {
            "id": 8,
            "image_id": 9,
            "iscrowd": 0,
            "segmentation": {"size": [*SIZE_HW], "counts": encode_mask(MASK).decode()},
        },
    ],
}
COUNTS = st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12)
SEGMENTATIONS = (
    VALUES
    | st.lists(st.lists(NUMBERS, min_size=6, max_size=8), max_size=3)
    | st.fixed_dictionaries({"size": st.just([*SIZE_HW]), "counts": COUNTS | st.text(max_size=6)})
    | st.fixed_dictionaries({"size": VALUES, "counts": VALUES})
)


def allowed(read: Callable[[], object]) -> None:
    """Call a reader, which may raise nothing but a SamrobustError."""
    with contextlib.suppress(SamrobustError):
        read()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Yield the path of every value inside of JSON."""
    places_of_list = range(len(value)) if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else places_of_list:
        yield (*path, key)
        yield from places(value[key], (*path, key))


@st.composite
def changed(draw: st.DrawFn, table: dict[str, Any]) -> dict[str, Any]:
    """Return JSON in which one or two values are others, or gone."""
    other = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([*places(other)] or [("images",)]))
        inner: Any = other
        for key in path:
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.booleans()):
            inner.pop(last, None)
        else:
            inner[last] = draw(VALUES)
    return other


def literal(value: object) -> str:
    """Return a value as TOML, or what is none."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def line(key: str, value: object) -> str:
    """Return a line of TOML that gives a key a value."""
    return f"{key} = {literal(value)}"


@st.composite
def changed_lines(draw: st.DrawFn, text: str) -> str:
    """Return a TOML file in which some lines have other values, are gone, or stand there twice."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        key = lines[at].partition(" = ")[0]
        lines[at] = draw(
            st.sampled_from(
                ["", f"{lines[at]}\n{lines[at]}", "[[conditions]]", "[data]", "[[loss]]"]
            )
            | VALUES.map(partial(line, key))
            | st.text(max_size=20)
        )
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("load", "good"),
    [(load_protocol, PROTOCOL), (load_recipe, RECIPE)],
    ids=["protocol", "recipe"],
)
@BOUNDED
@given(draws=st.data())
def test_any_toml_is_a_value_or_a_refusal(
    tmp_path: Path, load: Callable[[str], object], good: str, draws: st.DataObject
) -> None:
    text = draws.draw(changed_lines(good) | st.text(max_size=50))
    file = tmp_path / "own.toml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    allowed(lambda: load(str(file)))


@BOUNDED
@given(content=changed(TABLE).map(json.dumps) | VALUES.map(json.dumps) | st.text(max_size=40))
def test_any_annotations_are_a_data_set_or_a_refusal(tmp_path: Path, content: str) -> None:
    for folder in ("val", "annotations"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "val/p.png").write_bytes(png())
    file = tmp_path / "annotations/instances_val.json"
    file.write_bytes(content.encode(errors="surrogatepass"))

    def read() -> None:
        dataset = CocoDataset(DatasetOptions(tmp_path, "val"))
        for sample_id in dataset.ids():
            with contextlib.suppress(SamrobustError):
                assert dataset[sample_id].instances

    allowed(read)


@BOUNDED
@given(segmentation=SEGMENTATIONS)
def test_any_segmentation_is_a_mask_of_the_image_or_a_refusal(segmentation: Any) -> None:  # noqa: ANN401
    with contextlib.suppress(SamrobustError):
        mask = decode_mask(segmentation, SIZE_HW, "here")
        assert mask.shape == SIZE_HW


@BOUNDED
@given(counts=st.binary(max_size=20) | COUNTS.map(str.encode))
def test_any_run_lengths_are_a_mask_or_a_refusal(counts: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert decode_counts(counts, SIZE_HW).shape == SIZE_HW


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM"):
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    """Return a picture with some bytes changed, most of them near its beginning, or cut short."""
    content = bytearray(draw(st.sampled_from(_pictures())))
    for _ in range(draw(st.integers(0, 6))):
        last = min(len(content), draw(st.sampled_from([64, 10**6]))) - 1
        content[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@BOUNDED
@given(content=damaged_pictures() | st.binary(max_size=40))
def test_any_picture_is_an_image_or_a_refusal(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(content)
    allowed(lambda: read_image(file))
    allowed(lambda: read_mask(file))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run, and its manifest."""
    folder = MadeUp(n_samples=2).store(tmp_path_factory.mktemp("runs")).folder
    return folder, json.loads((folder / "manifest.json").read_text())


@settings(BOUNDED, max_examples=40)
@given(draws=st.data())
def test_any_manifest_is_a_table_or_a_refusal(
    stored: tuple[Path, dict[str, Any]], draws: st.DataObject
) -> None:
    folder, manifest = stored
    plain = draws.draw(changed(manifest) | VALUES)
    (folder / "manifest.json").write_text(json.dumps(plain), encoding="utf-8")
    with contextlib.suppress(RunError):
        terminal_tables(summarise([read_run(folder)]), details=True)
