"""Conversations about the objects of an image: all take their next click in one forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samrobust.evaluation.predictor import Predictor, Selected
from samrobust.evaluation.prompts import Draws
from samrobust.geometry import flat_to_points
from samrobust.protocol import click_of
from samrobust.seeding import keyed_generator
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.types import NO_POINT, Condition, PromptBatch, Turn

MAX_ANSWER_BYTES = 2**28
"""Of the answers that are held until they are corrected; more objects come after each other."""


def converse(
    predict: Predictor, draws: Sequence[Draws], conditions: Sequence[Condition], *, feeds: bool
) -> Iterator[Selected]:
    """Yield the masks of all turns of conversations, turn by turn.

    The prompts of a turn are all clicks so far, of a trial that stopped earlier the last ones,
    filled up with `NO_POINT`. A trial stops where nothing is left to correct; its later answers
    are its last one.

    Args:
        predict: of the image.
        draws: the first prompts, of any number of conversations.
        conditions: of the protocol.
        feeds: whether the segmenter takes mask prompts.
    """
    turns: dict[str, list[Condition]] = {}
    for condition in conditions:
        if condition.turn is not None:
            turns.setdefault(condition.turn.conversation, []).append(condition)
    for some in _within_bytes(draws):
        yield from _converse(predict, some, turns, feeds=feeds)


def _within_bytes(draws: Sequence[Draws]) -> Iterator[list[Draws]]:
    """Yield the draws in lists whose answers take at most `MAX_ANSWER_BYTES`, or of one."""
    some: list[Draws] = []
    n_bytes = 0
    for draw in draws:
        more = len(draw.prompts) * draw.instance.mask.size
        if some and n_bytes + more > MAX_ANSWER_BYTES:
            yield some
            some, n_bytes = [], 0
        some.append(draw)
        n_bytes += more
    if some:
        yield some


def _converse(
    predict: Predictor,
    draws: Sequence[Draws],
    turns: Mapping[str, Sequence[Condition]],
    *,
    feeds: bool,
) -> Iterator[Selected]:
    conversations = []
    for first in dict.fromkeys(_turn(draw).interaction.first for draw in draws):
        opened = [draw for draw in draws if _turn(draw).interaction.first == first]
        for answer in predict.all_masks(opened, selection=first, with_logits=feeds):
            yield answer
            turn = _turn(answer.draws)
            coming = turns[turn.conversation][1:]
            feedback = feeds and turn.interaction.feedback
            conversations.append(_Conversation(answer, coming, feedback=feedback))
    while conversations := [each for each in conversations if each.coming]:
        asked = [(each, question) for each in conversations if (question := each.ask()) is not None]
        listeners = {id(question): each for each, question in asked}
        questions = [question for _, question in asked]
        for answer in predict.all_masks(questions, with_logits=feeds):
            listeners[id(answer.draws)].hear(answer)
        for conversation in conversations:
            yield conversation.next_turn()


def _turn(draws: Draws) -> Turn:
    turn = draws.condition.turn
    if turn is None:
        raise ValueError(f"condition '{draws.condition.name}' is no turn of a conversation")
    return turn


class _Conversation:
    """The trials of one object in one conversation.

    Args:
        first: the first answers.
        coming: conditions of the turns after it.
        feedback: whether prompts hold the logits of the last answer.

    Attributes:
        coming: those that are left.
    """

    def __init__(self, first: Selected, coming: Sequence[Condition], *, feedback: bool) -> None:
        self.coming = list(coming)
        self._answer = first
        self._feedback = feedback
        self._click = click_of(_turn(first.draws).interaction)
        prompts, width = first.draws.prompts, first.draws.instance.mask.shape[1]
        x, y = prompts.points[..., 0].astype(np.int64), prompts.points[..., 1].astype(np.int64)
        self._places = (y * width + x).tolist()  # of the clicks of each trial
        self._labels = prompts.labels.tolist()
        self._open: list[int] = []  # trials that get a click in this turn

    def ask(self) -> Draws | None:
        """Place the next click of each trial; return the prompts of those that got one."""
        draws = self._answer.draws
        masks = self._answer.masks[MASK_THRESHOLD].numpy(force=True)
        self._open = []
        for trial, answer in enumerate(masks):
            rng = keyed_generator(
                *draws.key, self._click.family, trial, len(self._places[trial]) + 1
            )
            click = self._click.correct(draws.instance.mask, answer, self._places[trial], rng)
            if click is not None:
                self._places[trial].append(click[0])
                self._labels[trial].append(click[1])
                self._open.append(trial)
        if not self._open:
            return None
        logits = None
        if self._feedback and self._answer.logits is not None:
            logits = self._answer.logits[self._open].numpy(force=True)
        return replace(draws, prompts=self._prompts(self._open, logits))

    def hear(self, answer: Selected) -> None:
        """Take the answers to what was asked; trials that got no click keep their last one."""
        before = self._answer
        masks = {
            threshold: _with_rows(before.masks[threshold], self._open, new)
            for threshold, new in answer.masks.items()
        }
        gap, logits = answer.gap, answer.logits
        self._answer = replace(
            before,
            masks=masks,
            quality=_with_rows(before.quality, self._open, answer.quality),
            gap=None
            if gap is None or before.gap is None
            else _with_rows(before.gap, self._open, gap),
            logits=None
            if logits is None or before.logits is None
            else _with_rows(before.logits, self._open, logits),
        )

    def next_turn(self) -> Selected:
        """Return the answers of this turn, with all clicks."""
        everyone = range(len(self._places))
        draws = replace(
            self._answer.draws,
            condition=self.coming.pop(0),
            prompts=self._prompts(everyone),
        )
        return replace(self._answer, draws=draws)

    def _prompts(
        self, trials: Sequence[int], logits: npt.NDArray[np.float32] | None = None
    ) -> PromptBatch:
        draws = self._answer.draws
        n_clicks = max(len(self._places[trial]) for trial in trials)
        points = np.zeros((len(trials), n_clicks, 2), np.float32)
        labels = np.full((len(trials), n_clicks), NO_POINT, np.int32)
        for row, trial in enumerate(trials):
            places = self._places[trial]
            points[row, : len(places)] = flat_to_points(places, draws.instance.mask.shape[1])
            labels[row, : len(places)] = self._labels[trial]
        boxes = draws.prompts.boxes
        return PromptBatch(None if boxes is None else boxes[list(trials)], points, labels, logits)


def _with_rows(before: Tensor, rows: Sequence[int], new: Tensor) -> Tensor:
    """Return a copy of a tensor with some rows replaced; the new ones where these are all."""
    if len(rows) == len(before):
        return new
    changed = before.clone()
    changed[list(rows)] = new
    return changed
