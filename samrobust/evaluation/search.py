"""Search for the prompts of lowest IoU, of all objects of an image at once."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import Tensor

from samrobust.evaluation.predictor import Predictor, Selected
from samrobust.evaluation.prompts import Draws
from samrobust.metrics.overlap import iou
from samrobust.runs.manifest import SearchRow
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.types import Asked, Floats, PromptBatch, Search, SearchSpace

BROKEN_BELOW = 0.5
"""IoU; a prompt with less breaks the mask."""


@dataclass(frozen=True)
class Searched:
    """What the searches of an image found.

    Attributes:
        selected: the prompt that each condition takes, with its mask.
        row: of the search, with the first condition that takes a prompt of it; None with others.
    """

    selected: Selected
    row: SearchRow | None


def search_prompts(
    predictor: Predictor, sample_id: str, draws: Sequence[Draws]
) -> Iterator[Searched]:
    """Yield what each of some conditions that search takes.

    Conditions of one family with the same parameters share a search. All its objects go through its
    rounds together, so that the prompts of a round are predicted in full batches.
    """
    kinds: dict[str, dict[str, _Pool]] = defaultdict(dict)
    for draw in draws:
        search = draw.condition.degradation
        if not (isinstance(search, Search) and draw.space is not None):
            raise TypeError(f"condition '{draw.condition.name}' is no search")
        key = f"{search.family} {json.dumps(asdict(search), sort_keys=True)}"  # type: ignore[call-overload]
        pools = kinds[key]
        if draw.instance.instance_id not in pools:
            pools[draw.instance.instance_id] = _Pool(draw, search, draw.space)
        pools[draw.instance.instance_id].conditions.append(draw)
    for pools in kinds.values():
        _run(predictor, list(pools.values()))
        for pool in pools.values():
            yield from pool.taken(sample_id)


def _run(predictor: Predictor, pools: Sequence["_Pool"]) -> None:
    search = pools[0].search
    for number in range(-1, search.rounds):
        asked = [replace(pool.draws, prompts=pool.prompts_of(number)) for pool in pools]
        found = predictor.all_masks(asked, with_gradients=search.needs_gradients)
        for pool, selected in zip(pools, found, strict=True):
            pool.add(selected)


class _Pool:
    """All prompts of an object that one search has asked so far, and the two extremes of them."""

    def __init__(self, draws: Draws, search: Search, space: SearchSpace) -> None:
        self.draws, self.search = draws, search
        self.conditions: list[Draws] = []
        self._space = space
        self._prompts: list[PromptBatch] = []
        self._ious = np.zeros(0)
        self._gradients = np.zeros((0, 4))
        self._extremes: dict[str, tuple[float, Selected]] = {}

    def prompts_of(self, number: int) -> PromptBatch:
        """Return the prompts of a round, -1 for the first one."""
        if number < 0:
            return self._space.starts
        gradients = self._gradients if self.search.needs_gradients else None
        asked = Asked(PromptBatch.join(self._prompts), self._ious, gradients)
        return self._space.after(number, asked)

    def add(self, found: Selected) -> None:
        """Add the masks of a round."""
        ious = iou(found.masks[MASK_THRESHOLD], found.target).numpy(force=True)
        for name, place in (("lowest", int(ious.argmin())), ("highest", int(ious.argmax()))):
            value = float(ious[place])
            best = self._extremes.get(name)
            if best is None or (value < best[0] if name == "lowest" else value > best[0]):
                self._extremes[name] = value, _one_of(found, place)
        self._prompts.append(found.draws.prompts)
        self._ious = np.concatenate([self._ious, ious])
        if found.gradients is not None:
            gradients = found.gradients.numpy(force=True)
            self._gradients = np.concatenate([self._gradients, gradients])

    def taken(self, sample_id: str) -> Iterator[Searched]:
        """Yield what the conditions take, in their order."""
        row: SearchRow | None = self._row(sample_id)
        for draws in self.conditions:
            search = draws.condition.degradation
            takes = search.takes if isinstance(search, Search) else ""
            _, found = self._extremes[takes]
            own = replace(draws, prompts=found.draws.prompts)
            yield Searched(replace(found, draws=own), row)
            row = None

    def _row(self, sample_id: str) -> SearchRow:
        percentiles: Floats = self._space.percentiles(PromptBatch.join(self._prompts))
        broken = percentiles[self._ious < BROKEN_BELOW]
        lowest, highest = (self._extremes[name] for name in ("lowest", "highest"))
        return SearchRow(
            sample_id,
            self.draws.instance.instance_id,
            self.draws.condition.name,
            worst=lowest[0],
            exact=float(self._ious[0]),
            best=highest[0],
            percentile=float(percentiles[self._ious.argmin()]),
            breaks_at=float(broken.min()) if len(broken) else None,
            n_asked=len(self._ious),
        )


def _one_of(found: Selected, place: int) -> Selected:
    """Return one prompt of several with its mask, copied so that the others can be forgotten."""
    row = slice(place, place + 1)

    def copy(values: Tensor) -> Tensor:
        return values[row].clone()

    return Selected(
        replace(found.draws, prompts=found.draws.prompts[row]),
        {threshold: copy(masks) for threshold, masks in found.masks.items()},
        found.target,
        copy(found.quality),
        None if found.gap is None else copy(found.gap),
    )
