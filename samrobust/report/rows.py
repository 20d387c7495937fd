"""Stored rows as places in arrays, some at a time: of 10^8 rows nothing is held twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from samrobust.store import Run

ROWS_AT_ONCE = 2**22
_KEY = ["sample_id", "instance_id"]
_CODED = (*_KEY, "condition", "metric")
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Rows:
    """Some rows of a run; all fields are as long.

    Attributes:
        condition: places in the protocol's conditions.
        object: places in the objects.
        trial: as stored, -1 for a score over all trials.
        metric: places in the metrics.
        value: as stored.
        prompt: the prompt's hash, as in `Run.scores`.
    """

    condition: Places
    object: Places
    trial: npt.NDArray[np.int32]
    metric: Places
    value: npt.NDArray[np.float32]
    prompt: npt.NDArray[np.uint64]


def objects_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the objects that any of the runs has scores of, sorted: `sample_id`, `instance_id`."""
    firsts = [
        run.scores[_KEY].iloc[start : start + ROWS_AT_ONCE].drop_duplicates().astype("str")
        for run in runs
        for start in range(0, len(run.scores), ROWS_AT_ONCE)
    ]
    return pd.concat(firsts).drop_duplicates().sort_values(_KEY, ignore_index=True)


def rows_of(
    run: Run, objects: pd.DataFrame, *, conditions: Sequence[str], metrics: Sequence[str]
) -> Iterator[Rows]:
    """Yield the scores of a run.

    Args:
        run: of objects, conditions and metrics that are all among the given ones.
        objects: as from `objects_of`.
        conditions: names.
        metrics: names.
    """
    images, instances = (pd.Index(objects[name].unique()) for name in _KEY)
    of_objects = images.get_indexer(objects["sample_id"]) * len(instances)
    numbers = pd.Index(of_objects + instances.get_indexer(objects["instance_id"]))
    names = dict(
        zip(_CODED, (images, instances, pd.Index(conditions), pd.Index(metrics)), strict=True)
    )
    place_of = {
        column: index.get_indexer(run.scores[column].cat.categories)
        for column, index in names.items()
    }
    for start in range(0, len(run.scores), ROWS_AT_ONCE):
        block = run.scores.iloc[start : start + ROWS_AT_ONCE]
        image, instance, condition, metric = (
            place_of[column][block[column].cat.codes.to_numpy()] for column in _CODED
        )
        yield Rows(
            condition=condition,
            object=numbers.get_indexer(pd.Index(image * len(instances) + instance)),
            trial=block["trial"].to_numpy(),
            metric=metric,
            value=block["value"].to_numpy(),
            prompt=block["prompt_hash"].to_numpy(),
        )
