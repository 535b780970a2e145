"""The training itself: steps over packed batches, a measure of how good it is after each epoch, stops on the way."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.errors import Interrupted, JobFailed
from xlmr_ray.model.packed_batch import PackedBatch, pack
from xlmr_ray.train.frozen import FrozenVectors
from xlmr_ray.train.group import OneWorker, WorkerGroup, add_gradients, agreed, dealt_out, total_of
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.model import Trained
from xlmr_ray.train.objectives.objective import Examples, Objective
from xlmr_ray.train.optimizer import clip, optimizer_of, rate_at
from xlmr_ray.train.state import Progress, StateFolder, copied_tensors
from xlmr_ray.train.steps import TrainSteps, parts_within
from xlmr_ray.train.stop import stop_asked

VALIDATION = 1 << 30  # in place of an epoch, for what is drawn in a validation


@dataclass(frozen=True, eq=False)
class ExamplePart:
    """Examples, with the `vectors` of their sequences where the encoder is frozen."""

    examples: Examples
    vectors: FrozenVectors | None = None


@dataclass
class Loop:
    """One training. `show` gets every step. Where a `group` makes the steps, each of its workers goes through a loop
    with the same examples, and computes its share of them.
    """

    job: FinetuneJob
    objective: Objective
    trained: Trained
    train: ExamplePart
    validation: ExamplePart | None
    state: StateFolder
    max_tokens: int
    show: Callable[[Progress, TrainSteps], None]
    stop: Callable[[], bool] = bool
    group: WorkerGroup = field(default_factory=OneWorker)
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] | None = None
    seen: tuple[int, Examples] | None = None

    @cached_property
    def steps(self) -> TrainSteps:
        return TrainSteps.of(len(self.train.examples), self.job.batch_size, self.job.epochs, self.job.seed)

    @cached_property
    def module(self) -> nn.Module:
        """What is trained: the head, and the model with it unless that is frozen."""
        return self.trained.head if self.train.vectors is not None else self.trained.model

    @cached_property
    def optimizer(self) -> torch.optim.AdamW:
        return optimizer_of(self.module, self.job)

    def resume(self) -> bool:
        """Takes up what was kept. Returns whether there was anything."""
        found = self.state.load()
        if found is None:
            return False
        self.progress, tensors = found
        self.module.load_state_dict(tensors["module"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best = tensors["best"]
        return True

    def keep(self) -> None:
        """Keeps what was done so far; the first of the workers does, and the others wait for it. Raises JobFailed."""
        if self.group.rank == 0:
            tensors: Mapping[str, Any] = {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
            }
            self.state.save(self.progress, tensors)
        agreed(self.group, True)

    def run(self) -> None:
        """From where it is to the end. Raises Interrupted, and JobFailed for a loss that is not a number."""
        progress, steps = self.progress, self.steps
        first, kept = progress.step, time.monotonic()
        with stop_asked() as asked:
            while progress.step < steps.count and not self.stopped_early():
                stop, due = agreed(
                    self.group,
                    asked.is_set() or self.stop(),
                    progress.step > first and time.monotonic() - kept >= self.job.checkpoint_every,
                )
                if stop or due:
                    self.keep()
                    kept = time.monotonic()
                if stop:
                    raise Interrupted(
                        f"stopped after step {progress.step} of {steps.count}; the same command goes on from there"
                    )
                started = time.monotonic()
                loss = self.step(progress.step)
                progress.losses.append(loss)
                progress.step += 1
                if steps.ends_epoch(progress.step - 1):
                    self.end_epoch()
                progress.seconds += time.monotonic() - started
                self.show(progress, steps)
        if self.best is not None:
            self.module.load_state_dict(self.best)

    def stopped_early(self) -> bool:
        """Whether the validation has not become better for as long as the job waits."""
        stopping = self.job.early_stopping
        return stopping is not None and self.progress.since_best >= stopping.patience

    def step(self, number: int) -> float:
        """One step of the optimizer. Returns the mean loss of its examples."""
        chosen = self.steps.chosen(number)
        examples = self.examples_of(self.steps.epoch(number))
        total = float(examples.weights[chosen].sum())
        self.module.train()
        # Dropout, the same when a step is made again, and another in each worker.
        torch.manual_seed(self.job.seed * 1_000_003 + number + (self.group.rank << 40))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(number, self.steps.count, self.job)
        loss = 0.0
        for one in self.losses(chosen, examples):
            mean = one / max(total, 1e-12)
            if mean.requires_grad:
                mean.backward()  # type: ignore[no-untyped-call]
            loss += float(mean.detach())
        if not self.objective.together:  # where the loss is already the whole step's
            loss = total_of(self.group, loss)
        add_gradients(self.group, [p for p in self.module.parameters() if p.requires_grad])
        norm = clip([p for p in self.module.parameters() if p.grad is not None], self.job.clip)
        if not math.isfinite(loss) or not math.isfinite(norm):
            # The weights are still those of the step before.
            self.keep()
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradients' norm is {norm}"
            raise JobFailed(
                f"step {number + 1} of {self.steps.count}: {what}; give a lower learning_rate (it was "
                f"{self.job.rate:g}); what was done before is in {self.state.folder}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def examples_of(self, epoch: int) -> Examples:
        """The training's examples as an epoch sees them, made once an epoch."""
        if self.seen is None or self.seen[0] != epoch:
            self.seen = epoch, self.objective.epoch(self.train.examples, (self.job.seed, epoch))
        return self.seen[1]

    def losses(self, chosen: NDArray[np.int64], examples: Examples) -> Iterator[Tensor]:
        """The summed losses of this worker's share of a step's examples, a part at a time. Where the examples see each
        other, it is that of the whole step, which has only this share's gradients: those of all workers make it up.
        """
        each = dealt_out(chosen, examples.tokens, self.group.size)
        own, part = each[self.group.rank], ExamplePart(examples, self.train.vectors)
        if not self.objective.together or self.group.size == 1:
            yield from (self.loss(part, one)[0] for one in self.parts(own, examples) if len(one))
            return
        # A worker without a share has no vectors to show, but computes some, so that it has gradients: zeros.
        there, outputs = self.outputs(part, own if len(own) else chosen[:1])
        outputs = outputs if len(own) else outputs[:0]
        found = self.group.gather(outputs.detach().float().cpu())
        whole = [outputs if rank == self.group.rank else one.to(outputs.device) for rank, one in enumerate(found)]
        yield self.loss_of(torch.cat([one.float() for one in whole]), there, examples, np.concatenate(each))

    def parts(self, chosen: NDArray[np.int64], examples: Examples) -> Iterator[NDArray[np.int64]]:
        """The chosen examples in parts that are computed together."""
        return iter([chosen]) if self.objective.together else parts_within(chosen, examples.tokens, self.max_tokens)

    def loss(self, part: ExamplePart, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The summed loss of examples that are computed together, and what it is made of."""
        there, outputs = self.outputs(part, chosen)
        return self.loss_of(outputs, there, part.examples, chosen), outputs

    def outputs(self, part: ExamplePart, chosen: NDArray[np.int64]) -> tuple[PackedBatch, Tensor]:
        """The batch of examples that are computed together, and what their loss is made of."""
        examples, device = part.examples, self.trained.device
        sequences = examples.sequences(chosen)
        batch = pack(
            examples.input_ids, examples.row_splits, sequences, self.objective.config, targets=examples.targets
        )
        there = batch.to(device)
        half = self.job.dtype == "bfloat16" or (
            self.job.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            if part.vectors is not None:
                hidden = part.vectors.hidden(batch, sequences, device)
            else:
                hidden = self.trained.hidden(batch, there, self.objective.task)
            hidden = self.objective.dropout(hidden, self.trained.head)
            return there, self.objective.outputs(self.trained.head, hidden, there)

    def loss_of(self, outputs: Tensor, batch: PackedBatch, examples: Examples, chosen: NDArray[np.int64]) -> Tensor:
        """The summed loss of the chosen examples, by their outputs."""
        labels = None if examples.labels is None else torch.from_numpy(examples.labels[chosen]).to(outputs.device)
        counts = np.diff(examples.splits)[chosen].tolist()
        return self.objective.loss(self.trained.head, outputs, batch, labels, counts)

    def end_epoch(self) -> None:
        """Measures the validation, and remembers the weights where they are the best so far."""
        progress = self.progress
        found: dict[str, Any] = {"step": progress.step, "epoch": self.steps.epoch(progress.step - 1) + 1}
        if self.validation is not None:
            found |= self.validate(self.validation)
        progress.history.append(found)
        if self.job.early_stopping is None:
            return
        name = "loss" if self.job.early_stopping.metric == "loss" else next(n for n in found if n not in NO_MEASURES)
        sign = -1 if name == "loss" else 1
        if progress.best is None or sign * found[name] > sign * progress.history[progress.best][name]:
            progress.best = len(progress.history) - 1
            self.best = copied_tensors(self.module.state_dict())

    def validate(self, part: ExamplePart) -> dict[str, float]:
        """The mean loss of a part, as `loss`, and the objective's measures."""
        outputs, examples, loss = self.answers(part)
        return {**self.objective.measures(outputs, examples), "loss": loss}

    @torch.no_grad()
    def answers(self, part: ExamplePart) -> tuple[list[NDArray[np.float32]], Examples, float]:
        """The outputs of each example of a part, the examples as a validation sees them, and their mean loss."""
        self.module.eval()
        examples = self.objective.epoch(part.examples, (self.job.seed, VALIDATION))
        total = 0.0
        outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(examples)
        rows = ResultRows.of(self.objective.unit, examples.row_splits, examples.targets)
        counts = np.diff(rows.splits[examples.splits])
        rank, size = self.group.rank, self.group.size
        if self.objective.together:
            each = np.array_split(np.arange(len(examples)), max(1, len(examples) // self.job.batch_size))[rank::size]
        else:
            each = [dealt_out(np.arange(len(examples)), examples.tokens, size)[rank]]
        own: dict[int, NDArray[np.float32]] = {}
        for chosen in (one for some in each for one in self.parts(some, examples) if len(one)):
            loss, raw = self.loss(ExamplePart(examples, part.vectors), chosen)
            total += float(loss)
            split = np.split(as_numpy(raw), np.cumsum(counts[chosen])[:-1])
            own.update(zip(chosen.tolist(), split, strict=True))
        for found in self.group.gather(own):
            for example, one in found.items():
                outputs[example] = one
        total = total_of(self.group, total)
        return outputs, examples, total / max(float(examples.weights.sum()), 1e-12)


def as_numpy(raw: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = raw.float().cpu().numpy()
    return found


NO_MEASURES = ("step", "epoch")
