"""A training on the workers of a Ray cluster, by Ray Train: each has the whole loop, and computes its share of a step.

What is kept stays on the machine of the launch: the workers give it to a desk there.
"""

import logging
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from typing import Any

# Read by Ray Train as it starts: on a machine with much to do, a worker that imports torch takes more than a minute.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xlmr_ray.batch.cluster import cluster_resources, connected, largest_share
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.plural import plural
from xlmr_ray.train.finetune import run_loop
from xlmr_ray.train.group import ProcessGroup
from xlmr_ray.train.loop import Loop
from xlmr_ray.train.state import Progress, StateFolder
from xlmr_ray.train.steps import TrainSteps
from xlmr_ray.train.stop import stop_asked

RECENT = 64  # losses that are shown of


class Desk:
    """Between the launch and its workers: how far they are, whether they are to stop, how they ended, what is kept."""

    def __init__(self, state: StateFolder) -> None:
        self.state = state
        self.progress: Progress | None = None
        self.stopping = False
        self.end: JobFailed | None = None

    def show(self, progress: Progress) -> bool:
        """From a worker, after a step. Returns whether it is to stop."""
        self.progress = progress
        return self.stopping

    def news(self, stop: bool) -> Progress | None:
        """For the launch: what was shown last."""
        self.stopping = self.stopping or stop
        return self.progress

    def failed(self, error: JobFailed) -> None:
        self.end = self.end or error

    def ended(self) -> JobFailed | None:
        return self.end

    def save(self, progress: Progress, tensors: dict[str, Any]) -> None:
        self.state.save(progress, tensors)

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        return self.state.load()


@dataclass(frozen=True)
class StateAtDesk(StateFolder):
    """A state folder on the launch's machine."""

    desk: Any

    def save(self, progress: Progress, tensors: Any) -> None:
        answered(self.desk.save.remote(progress, tensors))

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        found: tuple[Progress, dict[str, Any]] | None = answered(self.desk.load.remote())
        return found


def answered(reference: ray.ObjectRef) -> Any:
    """What the desk answers, or raises."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def train_on_workers(loop: Loop) -> None:
    """Trains to the end, or from where it stopped, and keeps what was done. Raises as `run_loop` does, and UserError
    where the cluster has too little for so many workers.
    """
    section, device = loop.job.cluster, loop.trained.device
    with connected(section.address):
        scaling = scaling_of(section.workers, gpu=device.type == "cuda")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        folder = StateFolder(loop.state.folder.absolute())
        desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote(folder)
        loop.trained.model.to("cpu")
        payload = ray.put(replace(loop, state=StateAtDesk(folder.folder, desk), show=nothing))
        room = tempfile.mkdtemp(prefix="xlmr-ray-train-")
        trainer = TorchTrainer(
            work,
            train_loop_config={"loop": payload, "desk": desk},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if scaling.use_gpu else "gloo"),
            scaling_config=scaling,
            run_config=RunConfig(storage_path=room, name="train", failure_config=FailureConfig(max_failures=0)),
        )
        try:
            follow(trainer, desk, loop)
        finally:
            shutil.rmtree(room, ignore_errors=True)
            loop.trained.model.to(device)


def scaling_of(workers: int, *, gpu: bool) -> ScalingConfig:
    """A GPU for each worker, or as many CPUs as each can have. Raises UserError where there are too few."""
    there = cluster_resources()
    gpus, cpus = sum(there.gpus), sum(there.cpus)
    if gpu and gpus < workers:
        raise UserError(f"cluster.workers: {workers}, but the cluster has {plural(int(gpus), 'GPU')}; give fewer")
    if not gpu and cpus < workers:
        raise UserError(f"cluster.workers: {workers}, but the cluster has {plural(int(cpus), 'CPU')}; give fewer")
    each = {"CPU": 1, "GPU": 1} if gpu else {"CPU": max(1, int(largest_share(there.cpus, [0.0], workers)))}
    return ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=each)


def follow(trainer: TorchTrainer, desk: Any, loop: Loop) -> None:
    """Runs it, shows how far it is, hands on ^C. Raises how it ended."""
    raised: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            raised.append(error)

    quiet_ray_train()
    # Not in the main thread, whose signals Ray Train would take.
    thread = threading.Thread(target=fit, daemon=True)
    with stop_asked() as asked:
        thread.start()
        shown = 0
        while thread.is_alive():
            thread.join(0.2)
            progress = ray.get(desk.news.remote(asked.is_set()))
            if progress is not None and progress.step > shown:
                shown = progress.step
                loop.show(progress, loop.steps)
    if (end := ray.get(desk.ended.remote())) is not None:
        raise end
    if raised:
        raise JobFailed(
            f"cluster.workers: the training ended after step {shown}: {cause(raised[0])}; what was kept is in "
            f"{loop.state.folder}, the same command goes on from there"
        )


def cause(error: Exception) -> str:
    """The first line of what happened in a worker."""
    failures = list(getattr(error, "worker_failures", {}).values())
    return first_line(failures[0] if failures else error)


def nothing(progress: Progress, steps: TrainSteps) -> None:
    """In place of a display, which stays with the launch."""


def quiet_ray_train() -> None:
    """Keeps Ray Train's log off the terminal; its files keep it."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)


def work(config: dict[str, Any]) -> None:
    """One worker's part."""
    desk = config["desk"]
    stopping = threading.Event()

    def show(progress: Progress, steps: TrainSteps) -> None:
        if group.rank == 0 and ray.get(desk.show.remote(replace(progress, losses=progress.losses[-RECENT:]))):
            stopping.set()

    group = ProcessGroup()
    loop: Loop = ray.get(config["loop"])
    loop = replace(loop, show=show, stop=stopping.is_set, group=group)
    loop.trained.model.to(get_device())
    try:
        loop.resume()
        run_loop(loop)
        loop.keep()
    except JobFailed as error:
        ray.get(desk.failed.remote(error))
        raise
