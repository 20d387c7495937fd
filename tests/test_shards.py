import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from samrobust.datasets.coco import build_coco
from samrobust.datasets.folder import Subset
from samrobust.errors import RunError
from samrobust.runs.sharing import WHOLE, Shard, image_cost, parse_shard, share_of
from samrobust.types import DatasetOptions
from tests.conftest import MemoryDataset


class Costly(MemoryDataset):
    """A data set without samples that knows what they would cost."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        super().__init__([])
        self.costs = costs

    def cost(self, sample_id: str) -> float:
        return self.costs[sample_id]


IDS = [f"image-{number}" for number in range(211)]


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_each_image_is_in_one_share_in_the_order_of_the_run(count: int) -> None:
    dataset = MemoryDataset([])
    shares = [share_of(dataset, IDS, Shard(number, count)) for number in range(1, count + 1)]
    assert sorted(itertools.chain(*shares)) == sorted(IDS)
    assert all(share == sorted(share, key=IDS.index) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [share_of(dataset, IDS, Shard(n, count)) for n in range(1, count + 1)] == shares


def test_shares_cost_about_the_same_where_images_do_not() -> None:
    dataset = Costly({name: 1 + (7 * place % 101) ** 3 for place, name in enumerate(IDS)})
    loads = [
        sum(map(dataset.cost, share_of(dataset, IDS, Shard(number, 7)))) for number in range(1, 8)
    ]
    assert max(loads) - min(loads) <= max(dataset.costs.values())
    assert max(loads) < 1.01 * min(loads)


@pytest.mark.parametrize("then", [2, 4, 5, 16])
def test_what_one_shard_left_is_spread_over_another_number_of_shards(then: int) -> None:
    dataset = MemoryDataset([])
    ids = [f"image-{number}" for number in range(8000)]
    left = {*share_of(dataset, ids, Shard(3, 8))}
    shares = [share_of(dataset, ids, Shard(number, then)) for number in range(1, then + 1)]
    even = len(left) / then
    for share in shares:
        assert abs(len(left & {*share}) - even) < 5 * even**0.5  # five standard deviations


def test_a_share_of_a_shard_is_a_shard() -> None:
    assert WHOLE.split(2, 3) == Shard(2, 3)
    parts = {Shard(number, 2).split(part, 3) for number in (1, 2) for part in (1, 2, 3)}
    assert parts == {Shard(number, 6) for number in range(1, 7)}


def test_a_shard_is_read_and_what_is_none_is_refused() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert parse_shard("1/1") == WHOLE
    for text in ("0/8", "9/8", "8", "1/0", "-1/8", "1/8/2", "a/b", "", "1/99999999", "²/8"):
        with pytest.raises(RunError, match=r"--shard must be I/N with 1 <= I <= N, as 2/8, got '"):
            parse_shard(text)


def test_coco_estimates_pixels_times_objects_and_one_for_the_image(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    sizes: dict[int, dict[str, object]] = {
        1: {"width": 30, "height": 20},
        2: {},
        3: {"width": "wide", "height": 20},
    }
    for number in sizes:
        PillowImage.new("RGB", (30, 20)).save(tmp_path / f"val/{number}.png")
    square = [1, 1, 9, 1, 9, 9]
    drawn = [(1, 1), (2, 1), (3, 2), (4, 3)]
    table = {
        "images": [{"id": n, "file_name": f"{n}.png", **size} for n, size in sizes.items()],
        "annotations": [{"id": n, "image_id": i, "segmentation": [square]} for n, i in drawn],
    }
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(table))
    coco = build_coco(DatasetOptions(tmp_path, "val"))
    assert coco.cost("1") == 30 * 20 * 3
    assert coco.cost("2") == coco.cost("3") == 640 * 480 * 2
    assert image_cost(Subset(coco, ("1",), "one"), "1") == coco.cost("1")
    assert image_cost(Subset(MemoryDataset([]), ("1",), "one"), "1") == 1
