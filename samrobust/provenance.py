"""The image collections that data sets belong to, and which of them a model was trained on."""

import json
from collections.abc import Mapping

from samrobust.datasets import COCO_SPLITS, FOLDERS, GROUPS

ORIGINS: Mapping[str, str] = {
    "scenes": "scenes",
    **{name: row.collection for name, row in FOLDERS.items() if row.collection},
}
"""Data set -> collection; training and test split share one (docs/sources/hq-sam.md 1.2)."""
HQSEG_44K = tuple(sorted({ORIGINS[name] for name in GROUPS["hqseg-44k"]}))
COCO = "MS-COCO"


def origin(name: str, split: str, folder: str) -> str:
    """Return the collection that a data set belongs to, "" if it is unknown.

    Args:
        name: as registered; for the formats "coco" and "folder", the folder names the collection.
        split: one of MS-COCO's own splits stands for MS-COCO, whatever the folder.
        folder: name of the root folder.
    """
    if name == "coco" and split in COCO_SPLITS:
        return COCO
    return ORIGINS.get(name, folder.strip("."))


def origins_of_training(header: Mapping[str, str]) -> tuple[str, ...]:
    """Return the collections that a weights file was trained on, sorted.

    Args:
        header: of the file; without a readable recipe the result is empty.
    """
    try:
        rows = json.loads(header.get("recipe", "{}")).get("data", [])
        collections = {
            origin(row["dataset"], row.get("split", ""), row.get("folder", ""))
            for row in rows
            if row["weight"] and row.get("held_out", 0) < 1
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return ()
    return tuple(sorted(collections - {""}))
