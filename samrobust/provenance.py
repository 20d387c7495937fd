"""Which collection the images of a data set come from: what "trained on the same data" goes by."""

import json
from collections.abc import Mapping

from samrobust.datasets import COCO_SPLITS, FOLDERS, GROUPS

ORIGINS: Mapping[str, str] = {
    "scenes": "scenes",
    **{name: row.collection for name, row in FOLDERS.items() if row.collection},
}
"""By name of the data set; training and test part have one origin (docs/sources/hq-sam.md 1.2)."""
HQSEG_44K = tuple(sorted({ORIGINS[name] for name in GROUPS["hqseg-44k"]}))
COCO = "MS-COCO"


def origin(name: str, split: str, folder: str) -> str:
    """Return the collection of a data set, "" where nothing tells.

    Args:
        name: as registered; "coco" and "folder" are formats, whose folder tells.
        split: of COCO, where its own names tell.
        folder: the name of its root.
    """
    if name == "coco" and split in COCO_SPLITS:
        return COCO
    return ORIGINS.get(name, folder.strip("."))


def origins_of_training(header: Mapping[str, str]) -> tuple[str, ...]:
    """Return the collections of which some images were trained on, from a file that training wrote.

    Args:
        header: of the file; without a recipe that can be read there are none.
    """
    try:
        rows = json.loads(header.get("recipe", "{}")).get("data", [])
        found = {
            origin(row["dataset"], row.get("split", ""), row.get("folder", ""))
            for row in rows
            if row["weight"] and row.get("held_out", 0) < 1
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return ()
    return tuple(sorted(found - {""}))
