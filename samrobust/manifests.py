"""`manifest.json`: what a run is, in words that any program reads, and the name made of it."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samrobust.errors import RunError
from samrobust.records import RunManifest
from samrobust.soundness import check_manifest
from samrobust.types import DatasetInfo, SegmenterInfo
from samrobust.whole import write_whole

FORMAT = 1
MANIFEST = "manifest.json"
_NOT_IDENTITY = ("command", "created", "reported", "memory_halvings")


def run_name(manifest: RunManifest) -> str:
    """Return the folder name of a run: what it is, then a hash of all that can change a number.

    Not in the hash: when and how it was started, whether its prompts fitted into memory, the
    published values shown beside it, the name of the folder that the data lie in, and what the
    segmenter was trained on, which its weights say.
    """
    identity = {k: v for k, v in _to_plain(manifest).items() if k not in _NOT_IDENTITY}
    identity["dataset"].pop("folder")
    identity["segmenter"].pop("trained_on")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [manifest.protocol["name"], manifest.dataset.key, manifest.segmenter.label, digest]
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def read_manifest(folder: Path) -> RunManifest:
    """Return what a stored run is.

    Raises:
        RunError: the folder is no run, or its manifest cannot be read.
    """
    path = folder / MANIFEST
    plain = read_json(path)
    try:
        if plain.pop("format") != FORMAT:
            raise RunError(f"{path}: is of another format than {FORMAT}")
        check_manifest(plain)
        segmenter = plain.pop("segmenter")
        segmenter["prompts"] = frozenset(segmenter["prompts"])
        segmenter["trained_on"] = tuple(segmenter.get("trained_on", ()))
        dataset = plain.pop("dataset")
        dataset["group_members"] = tuple(dataset["group_members"])
        return RunManifest(
            segmenter=SegmenterInfo(**segmenter), dataset=DatasetInfo(**dataset), **plain
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is not the manifest of a run: {error}") from error


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Store what a run is, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    write_json(folder / MANIFEST, _to_plain(manifest))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        RunError: it cannot be read, or is another thing.
    """
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise RunError(f"{path}: is not a JSON object")
    return plain


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; what was stored before is kept, "
            "the same command goes on from there"
        ) from error


def _to_plain(manifest: RunManifest) -> dict[str, Any]:
    plain = dataclasses.asdict(manifest)
    plain["segmenter"]["prompts"] = sorted(manifest.segmenter.prompts)
    return {"format": FORMAT, **plain}
