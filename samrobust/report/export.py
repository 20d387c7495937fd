"""One JSON a run for a leaderboard: what it is, and its scores with intervals."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from samrobust.report.aggregate import summarise
from samrobust.report.files import write_text
from samrobust.store import Run

FORMAT = 1
SCHEMA_FILE = Path(__file__).with_name("leaderboard.schema.json")
"""JSON Schema (2020-12) of an export; a changed meaning raises its format."""


def export_run(run: Run) -> dict[str, Any]:
    """Return a run as plain JSON values, as `leaderboard.schema.json` says.

    Raises:
        RunError: it holds no scores.
    """
    (section,) = summarise([run])[:1]
    manifest, segmenter = run.manifest, run.manifest.segmenter
    protocol, dataset = manifest.protocol, manifest.dataset
    rows = section.measured
    return {
        "format": FORMAT,
        "run": run.folder.name,
        "created": manifest.created,
        "segmenter": {
            "name": segmenter.name,
            "variant": segmenter.variant,
            "checkpoint_sha256": segmenter.checkpoint_sha256,
            "is_control": segmenter.is_control,
            "frame": segmenter.frame,
            "dtype": segmenter.dtype,
            "settings": dict(segmenter.settings),
        },
        "protocol": {key: protocol.get(key) for key in _PROTOCOL},
        "dataset": {
            "name": dataset.key,
            "part": dataset.part,
            "fingerprint": dataset.fingerprint,
            "n_images": int(rows["n_images"].iloc[0]),
            "n_objects": int(rows["n_objects"].iloc[0]),
            "n_failed": len(run.failures),
            "is_complete": run.n_missing == 0,
            "limit": manifest.limit,
        },
        "device": manifest.device,
        "versions": dict(manifest.versions),
        "scores": [
            _score(row, statistic)
            for row in rows.to_dict("records")
            for statistic in section.statistics
            if pd.notna(row[statistic])
        ],
    }


def to_json(runs: Sequence[Run]) -> str:
    """Return one line of JSON a run."""
    return "".join(json.dumps(export_run(run), ensure_ascii=False) + "\n" for run in runs)


def write_exports(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `leaderboard/<run>.json` for each run and return the paths.

    Raises:
        RunError: a file cannot be written.
    """
    return [
        write_text(
            folder / "leaderboard" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run.folder.name)}.json",
            json.dumps(export_run(run), indent=2, ensure_ascii=False) + "\n",
        )
        for run in runs
    ]


_PROTOCOL = ("name", "version", "sha256", "seed", "selection")


def _score(row: dict[Any, Any], statistic: str) -> dict[str, Any]:
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    return {
        "condition": row["condition"],
        "level": None if pd.isna(row["level"]) else row["level"],
        "n_trials": int(row["n_trials"]),
        "statistic": statistic,
        "value": round(row[statistic], 6),
        "interval": None if pd.isna(low) else [round(low, 6), round(high, 6)],
    }
