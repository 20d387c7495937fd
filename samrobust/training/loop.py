"""The training loop: steps, a moving average, validation, several processes, resuming."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samrobust.errors import TrainingError
from samrobust.runs.sharing import Ranks
from samrobust.segmenters.device import says_out_of_memory
from samrobust.training.checkpoints import TrainingFolder, TrainingState
from samrobust.training.data import TrainingData
from samrobust.training.examples import Example, ExampleDraws, load_examples
from samrobust.training.models import Trainee
from samrobust.training.recipe import Phase, Recipe, recipe_hash
from samrobust.training.validation import validate

LOG_EVERY = 20
"""Steps whose mean loss is one row of the log."""
SAVE_SECONDS = 60.0
"""Between two stored states: a kill loses at most this much work and one step."""
BETAS = (0.9, 0.98)
"""Of AdamW; the second is smaller than its default, for short trainings (ours)."""
ValidationScores = Mapping[str, Mapping[str, float]]
"""Label of the data set -> result of `validate`."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training.

    Attributes:
        step: number of steps done.
        phase: name of the phase.
        loss: mean losses of the last `LOG_EVERY` steps by name, with "total".
        held_out: results of the last validation; empty before the first.
    """

    step: int
    phase: str
    loss: Mapping[str, float]
    held_out: ValidationScores


class Training:
    """One training, from its first step or from the state in its folder.

    Args:
        trainee: the model.
        recipe: how it is trained.
        data: images for training and validation.
        folder: of its state and log.
        ranks: this process's rank among those that train together; None for a single process.

    Raises:
        TrainingError: the state in the folder belongs to another training.
    """

    def __init__(
        self,
        trainee: Trainee,
        recipe: Recipe,
        data: TrainingData,
        folder: TrainingFolder,
        *,
        ranks: Ranks | None = None,
    ) -> None:
        self.step = 0
        self._trainee = trainee
        self._recipe = recipe
        self._draws = ExampleDraws(recipe, data.pools, trainee.side, stride=trainee.stride)
        self._held_out = data.held_out
        self._folder = folder
        self._ranks = ranks or Ranks()
        self._identity = f"{recipe_hash(recipe)} {data.fingerprint} {trainee.start}".strip()
        named = trainee.learned.named_parameters()
        self._parameters = {name: value for name, value in named if value.requires_grad}
        self._initial = {name: x.detach().clone() for name, x in self._parameters.items()}
        self._average = {name: x.clone() for name, x in self._initial.items()}
        self._optimizer = _optimizer(self._parameters, trainee.rate_of, recipe)
        self._resume()
        last = recipe.n_steps - 1
        self._schedule = LambdaLR(
            self._optimizer,
            lambda step: learning_rate(*recipe.phase_at(min(step, last))),
            last_epoch=self.step - 1,
        )

    def run(self, *, workers: int) -> Iterator[Progress]:
        """Do the remaining steps; rank 0 yields after every `LOG_EVERY` steps and at the end.

        Args:
            workers: processes that draw examples ahead; 0 for none.

        Raises:
            TrainingError: a gradient is not finite, or device memory runs out; the last stored
                state stays.
        """
        recipe, ranks = self._recipe, self._ranks
        examples = load_examples(
            self._draws,
            recipe,
            first_step=self.step,
            workers=workers,
            rank=ranks.rank,
            world=ranks.world,
        )
        log = _Log()
        held_out: ValidationScores = {}
        saved = time.monotonic()
        for batch in examples:
            phase, _ = recipe.phase_at(self.step)
            losses = self._do_step(batch, phase)
            self.step += 1
            last = self.step == recipe.n_steps
            if ranks.rank == 0:
                log.add(losses)
                if recipe.judge_images and (self.step % recipe.judge_every == 0 or last):
                    held_out = self._validate(None if last else recipe.judge_images)
                if self.step % LOG_EVERY == 0 or last:
                    means, log = log.means(), _Log()
                    self._folder.log({"step": self.step, "phase": phase.name, **means})
                    yield Progress(self.step, phase.name, means, held_out)
                if last or time.monotonic() - saved > SAVE_SECONDS:
                    self._save_state()
                    saved = time.monotonic()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the moving average, as far as the recipe interpolates to it, within the context."""
        learned = self._trainee.learned
        current = {name: x.detach().clone() for name, x in self._parameters.items()}
        share = self._recipe.interpolation
        chosen = {name: x.lerp(self._average[name], share) for name, x in self._initial.items()}
        learned.load_state_dict(chosen, strict=False)
        try:
            yield
        finally:
            learned.load_state_dict(current, strict=False)

    def save(self, path: Path) -> None:
        """Write the weights that `averaged` uses."""
        with self.averaged():
            self._trainee.save(path)

    def _do_step(self, batch: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        try:
            self._optimizer.zero_grad()
            losses = self._backward(batch, phase)
            self._share_gradients()
            norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.clip_norm)
            if not norm.isfinite():
                names = ", ".join(example.sample_id for example in batch)
                raise TrainingError(
                    f"step {self.step}: the gradient is not finite, on {names}; "
                    f"the last stored state stays in {self._folder.path}; "
                    "lower the learning rate of the recipe"
                )
            self._optimizer.step()
            self._schedule.step()
            self._update_average()
        except (RuntimeError, MemoryError) as error:
            if not says_out_of_memory(error):
                raise
            raise TrainingError(
                f"step {self.step}: out of device memory; the last stored state stays in "
                f"{self._folder.path}; lower images, objects or kinds of phase '{phase.name}'"
            ) from error
        return losses

    def _backward(self, batch: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return this process's losses; gradients are weighted by its share of the step."""
        if not batch:  # more processes than images
            return {}
        losses = self._trainee.losses(batch, phase)
        total = torch.stack(list(losses.values())).sum()
        share = len(batch) * self._ranks.world / phase.images
        (share * total).backward()  # type: ignore[no-untyped-call]
        return {name: loss.detach() for name, loss in losses.items()} | {"total": total.detach()}

    def _share_gradients(self) -> None:
        """Average the gradients over all processes; that of a parameter without one is 0."""
        gradients = []
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self._ranks.world > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            sizes = [gradient.numel() for gradient in gradients]
            means = torch.split(flat / self._ranks.world, sizes)
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _update_average(self) -> None:
        """Update the moving average of the weights; the decay is smaller at the beginning."""
        decay = min(self._recipe.average, (1 + self.step) / (10 + self.step))
        averages, weights = list(self._average.values()), list(self._parameters.values())
        get_ema_multi_avg_fn(decay)(averages, weights, self.step)  # type: ignore[no-untyped-call]

    def _validate(self, n_images: int | None) -> ValidationScores:
        """Return the results on the first `n_images` held-out images per data set; None for all."""
        with self.averaged():
            segmenter = self._trainee.segmenter()
            scores = {
                held_out.dataset.info.label: validate(
                    segmenter, held_out.dataset, held_out.sample_ids[:n_images]
                )
                for held_out in self._held_out
            }
        self._folder.log({"step": self.step, "held_out": scores})
        return scores

    def _save_state(self) -> None:
        learned, optimizer = self._trainee.learned.state_dict(), self._optimizer.state_dict()
        self._folder.save(
            TrainingState(self.step, learned, self._average, optimizer, self._identity)
        )

    def _resume(self) -> None:
        state = self._folder.load(self._identity)
        if state is not None:
            self.step = state.step
            self._trainee.learned.load_state_dict(state.learned)
            # learning rates and weight decay come from the recipe, whose hash is in the identity
            moments = {"state": state.optimizer["state"]}
            self._optimizer.load_state_dict(self._optimizer.state_dict() | moments)
            for name, average in self._average.items():
                average.copy_(state.average[name])
        if self._ranks.rank == 0:
            self._folder.forget_after(self.step)


@contextlib.contextmanager
def process_group(device: str) -> Iterator[tuple[Ranks, str]]:
    """Yield this process's ranks and device, with the process group of `torchrun` initialised.

    Each process of a machine has its own GPU, or a share of the CPU. Without `torchrun` there is
    a single process.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    # On a CPU, operations on denormal numbers are ten times slower. Set this before torch starts
    # its threads, which inherit it.
    torch.set_flush_denormal(True)
    ranks = Ranks.from_environment()
    if ranks.world == 1:
        yield ranks, device
        return
    device = ranks.own_device(device)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield ranks, device
    finally:
        distributed.destroy_process_group()


def learning_rate(phase: Phase, step: int) -> float:
    """Return the learning rate at a step of a phase: linear warm-up, then cosine decay."""
    warmup = min(1.0, (step + 1) / (phase.warmup + 1))
    decay = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    first, last = phase.learning_rate, phase.last_learning_rate
    return warmup * (last + (first - last) * decay)


def _optimizer(
    parameters: Mapping[str, nn.Parameter], rate_of: Callable[[str], float], recipe: Recipe
) -> torch.optim.AdamW:
    """Return AdamW, with weight decay on matrices and kernels but not on biases and norms.

    The "initial_lr" of a group is the factor of its learning rate: `LambdaLR` multiplies by it.
    """
    members_of: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters.items():
        members_of[rate_of(name), parameter.ndim > 1].append(parameter)
    groups = [
        {"params": members, "initial_lr": rate, "weight_decay": recipe.weight_decay * decays}
        for (rate, decays), members in members_of.items()
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


class _Log:
    """Losses of the steps of one row of the log."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._n_steps = 0
        self._losses: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        self._n_steps += 1
        for name, loss in losses.items():
            self._losses[name].append(loss)

    def means(self) -> dict[str, float]:
        """Return the means by name, and the seconds per step."""
        means = {name: torch.stack(losses).mean().item() for name, losses in self._losses.items()}
        return {**means, "seconds_per_step": (time.monotonic() - self._started) / self._n_steps}
