"""A Ray cluster, and how many actors of which size it carries."""

import contextlib
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Read by Ray when it is imported. Its core prints, to the user's terminal, an "error" about how Ray Data itself starts
# actors.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# That Ray Data ended an actor itself, as it does when a run is stopped, is no news for the terminal.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"actor is dead because it was killed by `ray\.kill`")

import ray

from xlmr_ray.batch.job import ClusterSection, EncoderRange
from xlmr_ray.engine.device import gpu_dtype
from xlmr_ray.errors import UserError
from xlmr_ray.ray_start import starting
from xlmr_ray.text.plural import plural

# Tokenizing takes a small part of a core for each CPU encoder, and several cores for each GPU.
TOKENIZER_CPUS = 0.25
WRITER_CPUS = 0.25
ADDRESS = re.compile(r"([^:/]+):(\d+)")
TOKENIZERS_PER_GPU = 8
# GPUs whose matrix units know float16 only, by Ray's names (`ray.util.accelerators`).
BEFORE_BFLOAT16 = frozenset({"K80", "P4", "P100", "T4", "V100"})
# What an encoder's process needs beside its weights and the results of a shard.
PROCESS_BYTES = 1 << 30


@dataclass(frozen=True)
class Resources:
    """What Ray counts of a cluster: the CPUs and GPUs of each machine, and the bytes of memory of all."""

    cpus: tuple[float, ...]
    gpus: tuple[float, ...]
    memory: float


@dataclass(frozen=True)
class Sizes:
    """Actors, the CPUs and GPUs that Ray counts for each, and the threads of an encoder (0: torch's choice).

    `most` encoders as the cluster grows, with as many tokenizers and writers for each as at first; 0: none more.
    """

    encoders: int
    encoder_cpus: float
    encoder_gpus: float
    tokenizers: int
    tokenizer_cpus: float
    writers: int
    threads: int
    most: int = 0

    def grown(self, actors: int) -> int:
        """Of so many actors of a kind, how many there are beside the most encoders."""
        return max(actors, -(-actors * self.most // self.encoders))

    def __str__(self) -> str:
        threads = f" of {plural(self.threads, 'thread')}" if self.threads else ""
        more = f", up to {plural(self.most, 'encoder')} as the cluster grows" if self.most > self.encoders else ""
        return (
            f"{plural(self.tokenizers, 'tokenizer')}, {plural(self.encoders, 'encoder')}{threads}, "
            f"{plural(self.writers, 'writer')}{more}"
        )


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the cluster: `auto` is `RAY_ADDRESS` where set, else a cluster of this machine that ends with
    the job.
    """
    if ray.is_initialized():
        yield  # the caller's own, which stays
        return
    wanted = remote(address)
    if wanted and (parts := ADDRESS.fullmatch(wanted)):
        # Ray itself would try for minutes.
        try:
            socket.create_connection((parts[1], int(parts[2])), timeout=10).close()
        except OSError as error:
            raise UserError(f"cluster.address {wanted}: no Ray cluster there: {error.strerror or error}") from None
    before = signal.getsignal(signal.SIGTERM)
    with quiet_core(), starting(f"cluster.address {wanted or 'local'}"):
        if wanted:
            ray.init(address=wanted, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    quiet_ray_data()
    if threading.current_thread() is threading.main_thread():
        # Ray's core has put its own handler below Python's, which aborts the process 3 s after SIGTERM, whatever it is
        # about to finish and to say.
        signal.signal(signal.SIGTERM, before if callable(before) else signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        ray.shutdown()


def connected_if_there(address: str) -> contextlib.AbstractContextManager[None]:
    """For planning: what a cluster has decides how a job is cut. One of this machine needs no asking, and starts when
    there is work.
    """
    return connected(address) if remote(address) else contextlib.nullcontext()


@contextlib.contextmanager
def quiet_core() -> Iterator[None]:
    """Without what Ray's core writes straight to standard error as it starts: that it obeys the variable set above.

    Failures to start are exceptions, and not lost.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quiet_ray_data() -> None:
    """Keeps Ray Data's log off the terminal: failures reach the user as one line. The log files keep all of it.

    Handlers that others put there, such as a program's that calls this package, are left as they are.
    """
    for handler in logging.getLogger("ray.data").handlers:
        rays = type(handler).__module__.partition(".")[0] == "ray"
        if rays and isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)


def remote(address: str) -> str | None:
    """The address of a cluster that is there already; None for one of this machine that ends with the job."""
    wanted = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    return wanted if wanted and wanted != "local" else None


def on_gpu(device: str) -> bool:
    """Whether the encoders will be on GPUs: those of the cluster where one is connected, else this machine's."""
    if device != "auto":
        return device.startswith("cuda")
    if ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0)) > 0
    import torch

    return torch.cuda.is_available()


def gpus_dtype() -> str:
    """What `dtype: auto` is for encoders on GPUs: what the oldest kind of a connected cluster can do, whose machines
    name theirs as a resource ("accelerator_type:T4"), else what this machine's can.
    """
    if ray.is_initialized():
        kinds = {name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")}
        return "float16" if kinds & BEFORE_BFLOAT16 else "bfloat16"
    import torch

    return gpu_dtype(torch.cuda.get_device_capability()) if torch.cuda.is_available() else "bfloat16"


def cluster_resources() -> Resources:
    """Of the connected cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (tuple(float(node.get(kind, 0.0)) for node in nodes) for kind in ("CPU", "GPU"))
    return Resources(cpus, gpus, float(ray.cluster_resources().get("memory", 0)))


def resources_here() -> Resources:
    """Of the cluster that Ray would start on this machine; none is started."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec  # Ray has no public name for it

    total = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
    return Resources((float(total.get("CPU", 0)),), (float(total.get("GPU", 0)),), float(total.get("memory", 0)))


def resources() -> Resources:
    """Of the connected cluster; where none is, of the one that would start on this machine."""
    return cluster_resources() if ray.is_initialized() else resources_here()


def cluster_sizes(
    there: Resources, cluster: ClusterSection, device: str, held: int, shards: int = sys.maxsize
) -> Sizes:
    """What a cluster carries, for encoders that each hold so many bytes of weights and results, and no more of them
    than there are `shards` to do, unless the job says how many.

    Raises UserError where it lacks what the job asks for.
    """
    cpus, gpus = max(1, int(sum(there.cpus))), sum(there.gpus)
    asked, wanted = cluster.gpus_per_encoder, cluster.encoders
    most = min(wanted.max, shards) if isinstance(wanted, EncoderRange) and remote(cluster.address) else 0
    if device == "cuda" or (device == "auto" and (gpus or asked not in ("auto", 0))):
        share = 1.0 if asked == "auto" else asked
        if not share:  # Ray would start one on every core, all on the same GPU
            raise UserError("cluster.gpus_per_encoder: 0 with encoders on GPUs; for CPUs use engine.device: cpu")
        fit = encoders_that_fit(share, there.gpus)
        if not fit:
            raise UserError(
                f"cluster.gpus_per_encoder: {share:g}, but no machine of the cluster has as many (GPUs in all: "
                f"{gpus:g}); add machines, ask for fewer, or use engine.device: cpu"
            )
        least = wanted.min if isinstance(wanted, EncoderRange) else wanted
        if least != "auto" and least > fit and not remote(cluster.address):
            raise UserError(
                f"cluster.encoders: {least} of {share:g} GPUs, but this machine's {gpus:g} carry {fit}; use auto or "
                "fewer"
            )
        encoders = encoders_at_first(wanted, fit, shards)
        room = max(1, cpus - encoders - 1)
        tokenizers = cluster.tokenizers if cluster.tokenizers != "auto" else min(room, TOKENIZERS_PER_GPU * encoders)
        return Sizes(encoders, 0.5, share, tokenizers, min(1.0, room / tokenizers), encoders, 0, most)
    # An encoder a core, as far as half the memory goes: on two cores, two encoders of one thread each did 1.25 times
    # what one of two threads does, and other work on a core then delays only one of them.
    copies = int(there.memory / 2 / (held + PROCESS_BYTES))
    encoders = encoders_at_first(wanted, min(cpus, copies), shards)
    tokenizers = cluster.tokenizers if cluster.tokenizers != "auto" else max(1, cpus // 8)
    tokenizer_cpus = min(TOKENIZER_CPUS, cpus / (4 * tokenizers))
    writers = max(1, cpus // 8)
    others = [tokenizer_cpus] * tokenizers + [WRITER_CPUS] * writers
    # Those that more machines are asked for are as large as those that these carry.
    here = min(encoders, max(1, min(cpus, copies))) if most else encoders
    encoder_cpus = largest_share(there.cpus, others, here)
    threads = min(cpus // here, int(max(there.cpus)))
    return Sizes(encoders, encoder_cpus, 0.0, tokenizers, tokenizer_cpus, writers, max(1, threads), most)


def encoders_at_first(wanted: int | str | EncoderRange, fit: int, shards: int) -> int:
    """As many as the job says; where it leaves that open, those that `fit`, and no more than it has shards."""
    if isinstance(wanted, EncoderRange):
        return max(1, min(max(fit, wanted.min), wanted.max, shards))
    return max(1, min(fit, shards)) if isinstance(wanted, str) else wanted


def encoders_that_fit(share: float, gpus: Sequence[float]) -> int:
    """How many encoders with that `share` of GPUs machines with so many `gpus` each carry. A share below one is on one
    GPU; one above it on GPUs of one machine.
    """
    # Ray counts in ten-thousandths: a third of a GPU three times is one.
    return sum(int(own) * int(1 / share + 1e-4) if share < 1 else int(own / share) for own in gpus)


def largest_share(free: Sequence[float], others: Sequence[float], wanted: int) -> float:
    """The most CPUs that so many encoders can have each, no machine's being more than there are, with the others
    beside them: an actor that asks for more than any machine has waits for ever. In hundredths, 0.01 at least.
    """
    left = sorted((int(100 * one) for one in free), reverse=True)
    for other in others:
        left[0] -= math.ceil(100 * other)
        left.sort(reverse=True)
    shares = {one // count for one in set(left) for count in range(1, wanted + 1)}
    for share in sorted(shares, reverse=True):
        if share > 0 and sum(max(0, one) // share for one in left) >= wanted:
            return share / 100
    return 0.01
