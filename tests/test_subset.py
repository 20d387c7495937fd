from pathlib import Path

import pytest

from samrobust.datasets.folder import read_subset
from samrobust.errors import DatasetError
from samrobust.evaluation.prompts import draw_prompts
from samrobust.protocol import load_protocol
from tests.conftest import MemoryDataset


def _file(folder: Path, content: str) -> Path:
    path = folder / "chosen.txt"
    path.write_text(content)
    return path


def test_images_come_in_the_order_of_the_whole(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    a, b, c = small_dataset.ids()
    subset = read_subset(small_dataset, _file(tmp_path, f"{c}\n\n {a} \r\n{c}\n"))
    assert list(subset.ids()) == [a, c]
    assert subset[c] is small_dataset[c]
    assert b not in subset.ids()


def test_prompts_are_those_of_the_whole_but_the_fingerprint_is_not(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    subset = read_subset(small_dataset, _file(tmp_path, "a\n"))
    protocol = load_protocol("noisy-box")
    hashes = [
        [draw.hashes for draw in draw_prompts(each["a"], each.info.key, protocol)]
        for each in (subset, small_dataset)
    ]
    assert hashes[0] == hashes[1]
    assert subset.info.fingerprint != small_dataset.info.fingerprint
    assert subset.info.label == "memory, chosen"


@pytest.mark.parametrize(
    ("content", "message"),
    [("nowhere\n", "'nowhere' is not an image of memory"), ("\n", "lists no image")],
)
def test_a_file_that_chooses_wrongly_is_refused(
    tmp_path: Path, small_dataset: MemoryDataset, content: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_subset(small_dataset, _file(tmp_path, content))


def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_subset(small_dataset, tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DatasetError, match="cannot be read: 'utf-8'"):
        read_subset(small_dataset, tmp_path / "bytes")
