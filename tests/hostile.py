"""Files as a stranger may write them: what is on disk in the rows of `test_bad_input`."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image as PillowImage
from safetensors.torch import save_file

from samrobust.datasets.coco import encode_mask
from samrobust.runs.manifest import TARGET_TRIAL, MaskRow, PhotographRow
from samrobust.runs.store import MASKS, PHOTOGRAPHS, append_part
from tests.conftest import rectangle
from tests.runs import MadeUp

Put = Callable[[], object]
"""Writes files into the working folder."""

SIZE_HW = (40, 61)
TOUCHED = Path("touched")
PROTOCOL = """
name = "own"
version = 1
summary = "a test"
source = "here"
seed = 3
trials = 4
selection = "single"
metrics = ["iou"]

[[conditions]]
name = "points"
degradation = "random-points"
count = 3
"""
CONDITIONS = PROTOCOL.index("[[")
RECIPE = (Path(__file__).parent / "tiny.toml").read_text(encoding="utf-8")


class Evil:
    """What touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (TOUCHED,)


def nothing() -> None:
    """Put nothing on disk."""


def text(content: str | bytes, name: str = "own.toml") -> Put:
    """Put a file with a content."""
    return lambda: Path(name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def protocol(old: str, new: str) -> Put:
    """Put a protocol that is right but for one thing."""
    assert old in PROTOCOL
    return text(PROTOCOL.replace(old, new))


def recipe(old: str, new: str) -> Put:
    """Put a recipe that is right but for one thing."""
    assert old in RECIPE
    return text(RECIPE.replace(old, new, 1))


def picture(content: bytes, name: str = "images/p.png") -> Put:
    """Put a folder data set of one pair, one file of it replaced."""

    def put() -> None:
        for folder in ("images", "masks"):
            Path(folder).mkdir()
            Path(folder, "p.png").write_bytes(png())
        Path("images/p.png").unlink()
        Path(name).unlink(missing_ok=True)
        Path(name).write_bytes(content)
        if name.startswith("masks"):
            Path("images/p.png").write_bytes(png())

    return put


def pipe() -> None:
    """Put a folder data set whose image is a pipe that nobody writes to."""
    picture(b"")()
    Path("images/p.png").unlink()
    os.mkfifo("images/p.png")


def loop() -> None:
    """Put a folder data set whose image is a link to itself."""
    picture(b"")()
    Path("images/p.png").unlink()
    Path("images/p.png").symlink_to("p.png")


def png(width: int = 61, height: int = 40, *, chunks: bytes = b"") -> bytes:
    """Return a PNG whose header may say another size than its 61 x 40 pixels have."""
    buffer = io.BytesIO()
    PillowImage.fromarray(rectangle(SIZE_HW, (3, 4, 20, 25)).astype(np.uint8) * 255).save(
        buffer, "PNG"
    )
    whole = buffer.getvalue()
    body = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + body + struct.pack(">I", zlib.crc32(body)) + chunks + whole[33:]


def text_bomb() -> bytes:
    """Return a PNG chunk of a text that unpacks to 20 MB."""
    body = b"zTXtComment\0\0" + zlib.compress(bytes(20_000_000), 9)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG whose header says another size than it has."""
    buffer = io.BytesIO()
    PillowImage.new("RGB", (61, 40)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def bmp(width: int, height: int) -> bytes:
    """Return a BMP whose header says another size than it has."""
    buffer = io.BytesIO()
    PillowImage.new("RGB", (61, 40)).save(buffer, "BMP")
    whole = buffer.getvalue()
    return whole[:18] + struct.pack("<ii", width, height) + whole[26:]


def coco(*, segmentation: object = None, image: dict[str, Any] | None = None) -> Put:
    """Put a COCO folder of one image with one object."""
    polygon = [[3, 4, 21, 4, 21, 26, 3, 26]]
    table = {
        "images": [{"id": 9, "file_name": "p.png", **(image or {})}],
        "annotations": [
            {
                "id": 77,
                "image_id": (image or {}).get("id", 9),
                "segmentation": polygon if segmentation is None else segmentation,
            }
        ],
    }
    return coco_text(json.dumps(table))


def coco_text(content: str) -> Put:
    """Put a COCO folder with a text for its annotations."""

    def put() -> None:
        for folder in ("val", "annotations"):
            Path(folder).mkdir()
        Path("val/p.png").write_bytes(png())
        Path("annotations/instances_val.json").write_text(content)

    return put


def weights(content: object) -> Put:
    """Put what `torch.save` makes of an object."""
    return lambda: torch.save(content, "w.pth")


def evil_training() -> None:
    """Put a training that was begun, whose state runs code."""
    text(RECIPE)()
    Path("sam-nano-training").mkdir()
    torch.save({"step": Evil()}, "sam-nano-training/state.pt")


def part_of_nano(kind: str) -> Put:
    """Put a file that says that it holds a part of SAM-nano, and weights that run code."""

    def put() -> None:
        header = {"kind": kind, "base-name": "sam-nano", "base-variant": "", "base-sha256": "0"}
        save_file({"x": torch.zeros(1)}, "part.safetensors", metadata=header)
        weights({"x": Evil()})()

    return put


def run(change: Callable[[dict[str, Any]], object] | None = None) -> Put:
    """Put a stored run, its manifest changed."""

    def put() -> None:
        folder = MadeUp().store(Path("made")).folder.rename("run")
        plain = json.loads((folder / "manifest.json").read_text())
        if change is not None:
            change(plain)
        (folder / "manifest.json").write_text(json.dumps(plain))

    return put


def run_with(name: str, content: str) -> Put:
    """Put a stored run, one of its files replaced."""

    def put() -> None:
        run()()
        Path("run", name).write_text(content)

    return put


def run_with_scores(change: Callable[[pa.Table], pa.Table]) -> Put:
    """Put a stored run with other scores."""

    def put() -> None:
        run()()
        part = Path("run/scores/part-00000.parquet")
        pq.write_table(change(pq.read_table(part)), part)

    return put


def with_column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    """Return what makes all rows of a column alike."""

    def change(table: pa.Table) -> pa.Table:
        place, field = table.schema.get_field_index(name), table.schema.field(name)
        return table.set_column(place, field, pa.array([value] * len(table), field.type))

    return change


def many_rows(table: pa.Table) -> pa.Table:
    """Return six million rows, all alike: 100 kB on disk."""
    first = table.slice(0, 1)
    zeros = pa.array(np.zeros(6_000_000, np.int32))
    columns = [
        pa.DictionaryArray.from_arrays(zeros, first[name].combine_chunks())
        for name in first.column_names
    ]
    return pa.table(columns, names=first.column_names)


def no_text(table: pa.Table) -> pa.Table:
    """Return rows whose sample ids are no UTF-8."""
    ids = pa.array([b"\xff\xfe"] * len(table), pa.binary())
    broken = pa.StringArray.from_buffers(len(ids), ids.buffers()[1], ids.buffers()[2])
    return table.set_column(0, table.schema.field(0), broken)


def panorama() -> None:
    """Put a folder data set of one picture of 1,000,000 x 20 pixels."""
    for folder in ("images", "masks"):
        Path(folder).mkdir()
    pixels = np.zeros((20, 1_000_000, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 1_000_000)
    mask = rectangle((20, 1_000_000), (200_000, 3, 800_000, 19)).astype(np.uint8) * 255
    PillowImage.fromarray(pixels).save("images/p.png", compress_level=1)
    PillowImage.fromarray(mask).save("masks/p.png", compress_level=1)


def run_with_kept(jpeg_content: bytes, counts: bytes, size_hw: tuple[int, int] = SIZE_HW) -> Put:
    """Put a stored run that keeps a photograph and a mask of one object."""

    def put() -> None:
        run()()
        key = ("image-0", "0")
        photograph = PhotographRow("image-0", *size_hw, jpeg_content, "all")
        masks = [
            MaskRow(*key, "", TARGET_TRIAL, encode_mask(rectangle(SIZE_HW, (3, 4, 20, 25)))),
            MaskRow(*key, "box-noise-0.4", 0, counts, (3.0, 4.0, 20.0, 25.0)),
        ]
        append_part(Path("run/photographs"), PHOTOGRAPHS, [photograph])
        append_part(Path("run/masks"), MASKS, masks)

    return put
