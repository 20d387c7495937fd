"""The training loop: steps, a moving average, validation, several processes, resuming."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from samrobust.errors import TrainingError
from samrobust.runs.sharing import Ranks
from samrobust.segmenters.device import says_out_of_memory
from samrobust.training.checkpoints import TrainingFolder, TrainingState
from samrobust.training.data import TrainingData
from samrobust.training.examples import Example, ExampleDraws, load_examples
from samrobust.training.models import Trainee
from samrobust.training.recipe import Phase, Recipe, recipe_hash
from samrobust.training.validation import judge


@dataclass(frozen=True)
class Team:
    """The processes that train together, each with its share of a step's images.

    Attributes:
        rank: of this one; the first one, 0, writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = torch.split(flat / self.world, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def joined_team(device: str) -> Iterator[tuple[Team, str]]:
    """Give this process's place and its device.

    Without `torchrun` a process is alone. With it, each of a machine's processes has a GPU of its
    own, or a share of the CPU.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    # On a CPU, numbers too small to be normal cost ten times an ordinary one. Set before torch
    # starts its threads, which take it over.
    torch.set_flush_denormal(True)
    ranks = Ranks.from_environment()
    if ranks.world == 1:
        yield Team(), device
        return
    device = ranks.own_device(device)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Team(ranks.rank, ranks.world), device
    finally:
        distributed.destroy_process_group()


LOG_EVERY = 20
"""Steps whose mean loss is one row of the log."""
SAVE_SECONDS = 60.0
"""At most this much work, and a step, is done again after a kill."""
BETAS = (0.9, 0.98)
"""Of AdamW; a shorter memory of squares than its default, for short trainings (ours)."""


@dataclass(frozen=True)
class Progress:
    """What has happened up to a step.

    Attributes:
        step: steps done.
        phase: name of its phase.
        loss: mean of the last steps, by name, with "total".
        held_out: results of the last look, by label; empty before the first.
    """

    step: int
    phase: str
    loss: Mapping[str, float]
    held_out: Mapping[str, Mapping[str, float]]


class Training:
    """One training, from its first step or from where a folder says that it stopped.

    Args:
        trainee: what learns.
        recipe: how.
        data: what it learns from and is judged on.
        folder: where state and log lie.
        team: this process's place among those that train together.

    Raises:
        TrainingError: the folder's state is of another training.
    """

    def __init__(
        self,
        trainee: Trainee,
        recipe: Recipe,
        data: TrainingData,
        folder: TrainingFolder,
        *,
        team: Team | None = None,
    ) -> None:
        self._trainee = trainee
        self._recipe = recipe
        self._draws = ExampleDraws(recipe, data.pools, trainee.side, stride=trainee.stride)
        self._held_out = data.held_out
        self._folder = folder
        self._identity = f"{recipe_hash(recipe)} {data.fingerprint} {trainee.start}".strip()
        self._team = team or Team()
        named = trainee.learned.named_parameters()
        self._parameters = {name: value for name, value in named if value.requires_grad}
        self._optimizer = _optimizer(self._parameters, trainee.rate_of, recipe)
        self._average = {name: x.detach().clone() for name, x in self._parameters.items()}
        self.step = 0
        self._resume()

    def run(self, *, workers: int) -> Iterator[Progress]:
        """Do what is left of the recipe; the first process yields now and then and at the end.

        Args:
            workers: processes that draw examples ahead; 0 for none.

        Raises:
            TrainingError: a loss is not finite, or memory ends; the last stored state stays.
        """
        recipe, team = self._recipe, self._team
        examples = load_examples(
            self._draws,
            recipe,
            first_step=self.step,
            workers=workers,
            rank=team.rank,
            world=team.world,
        )
        log = _Log()
        held_out: Mapping[str, Mapping[str, float]] = {}
        saved = time.monotonic()
        for batch in examples:
            phase, step_in_phase = recipe.phase_at(self.step)
            with self._within_memory(phase):
                losses = self._do_step(batch, phase, step_in_phase)
            if team.rank == 0:
                log.add(losses)
            self.step += 1
            last = self.step == recipe.n_steps
            if recipe.judge_images and (self.step % recipe.judge_every == 0 or last):
                held_out = self._look()
            if team.rank == 0 and (self.step % LOG_EVERY == 0 or last):
                means = log.close()
                self._folder.log({"step": self.step, "phase": phase.name, **means})
                yield Progress(self.step, phase.name, means, held_out)
            if last or time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the trainee have the moving average of its weights for a while."""
        own = {name: x.detach().clone() for name, x in self._parameters.items()}
        _copy(self._average, self._parameters)
        try:
            yield
        finally:
            _copy(own, self._parameters)

    def save(self, path: Path) -> None:
        """Write what has been learned, as the moving average has it."""
        with self.averaged():
            self._trainee.save(path)

    @contextlib.contextmanager
    def _within_memory(self, phase: Phase) -> Iterator[None]:
        """Say in one line that the memory of the device ends."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not says_out_of_memory(error):
                raise
            raise TrainingError(
                f"step {self.step}: out of device memory; what was stored before stays in "
                f"{self._folder.path}; lower images, objects or kinds of phase '{phase.name}'"
            ) from error

    def _do_step(self, batch: Sequence[Example], phase: Phase, step: int) -> dict[str, Tensor]:
        rate = learning_rate(phase, step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._optimizer.zero_grad()
        losses = self._backward(batch, phase)
        self._share_gradients()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.clip_norm)
        if not norm.isfinite():
            names = ", ".join(example.sample_id for example in batch)
            raise TrainingError(
                f"step {self.step}: the gradient is not finite, on {names}; "
                f"what was stored before stays in {self._folder.path}; "
                "lower the learning rate of the recipe"
            )
        self._optimizer.step()
        self._follow()
        return losses

    def _backward(self, batch: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return this process's losses; its gradients weigh as much as its share of the step."""
        if not batch:  # more processes than images
            return {}
        losses = self._trainee.losses(batch, phase)
        total = torch.stack(list(losses.values())).sum()
        share = len(batch) * self._team.world / phase.images
        (share * total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()} | {"total": total.detach()}

    def _share_gradients(self) -> None:
        """Let all processes have the mean gradient; of what took no part in a step it is 0."""
        gradients = []
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._team.mean(gradients)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average towards the weights, faster in the beginning."""
        decay = min(self._recipe.average, (1 + self.step) / (10 + self.step))
        for name, average in self._average.items():
            average.lerp_(self._parameters[name], 1 - decay)

    def _look(self) -> dict[str, dict[str, float]]:
        if self._team.rank:
            return {}
        last = self.step == self._recipe.n_steps
        most = None if last else self._recipe.judge_images
        with self.averaged():
            segmenter = self._trainee.segmenter()
            found = {
                each.dataset.info.label: judge(segmenter, each.dataset, each.sample_ids[:most])
                for each in self._held_out
            }
        self._folder.log({"step": self.step, "held_out": found})
        return found

    def _save(self) -> None:
        if self._team.rank:
            return
        self._folder.save(
            TrainingState(
                self.step,
                self._trainee.learned.state_dict(),
                self._average,
                self._optimizer.state_dict(),
                self._identity,
            )
        )

    def _resume(self) -> None:
        state = self._folder.load(self._identity)
        if state is not None:
            self.step = state.step
            self._trainee.learned.load_state_dict(state.learned)
            self._optimizer.load_state_dict(state.optimizer)
            _copy(state.average, self._average)
        if self._team.rank == 0:
            self._folder.forget_after(self.step)


def learning_rate(phase: Phase, step: int) -> float:
    """Return the learning rate of a step of a phase: a linear rise, then half a cosine."""
    risen = min(1.0, (step + 1) / (phase.warmup + 1))
    falling = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    first, last = phase.learning_rate, phase.last_learning_rate
    return risen * (last + (first - last) * falling)


def _optimizer(
    parameters: Mapping[str, nn.Parameter], rate_of: Callable[[str], float], recipe: Recipe
) -> torch.optim.AdamW:
    """Return AdamW, with weight decay on matrices and kernels but not on biases and norms.

    The "factor" of a group is that of its learning rate.
    """
    alike: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        alike[rate_of(name), parameter.ndim > 1].append(parameter)
    groups = [
        {"params": members, "factor": rate, "weight_decay": recipe.weight_decay * decays}
        for (rate, decays), members in alike.items()
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)


class _Log:
    """Losses of the steps since the last row."""

    def __init__(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, losses: dict[str, Tensor]) -> None:
        self._losses.append(losses)

    def close(self) -> dict[str, float]:
        """Return the means by name and the seconds a step, and begin anew."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for losses in self._losses:
            for name, loss in losses.items():
                found[name].append(loss)
        row = {name: torch.stack(values).mean().item() for name, values in found.items()}
        row["seconds_per_step"] = self.seconds / len(self._losses)
        self._losses.clear()
        self._started = time.monotonic()
        return row
