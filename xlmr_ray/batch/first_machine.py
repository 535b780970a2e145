"""The first machine of a cluster that grows: asked for and waited for where a job finds none that could carry it."""

import math
import time
from collections.abc import Callable

import ray

from xlmr_ray.batch.cluster import Resources, cluster_resources, encoders_that_fit
from xlmr_ray.batch.job import EncoderRange, Job
from xlmr_ray.errors import JobFailed

WAIT = 1800.0  # seconds: clouds take minutes, with drivers and images


def await_first_machine(job: Job, say: Callable[[str], None], *, wait: float = WAIT) -> None:
    """Returns when the connected cluster carries an encoder of a job whose `cluster.encoders` is a range; of other
    jobs, which take what is there, at once. Raises JobFailed after `wait` seconds.
    """
    if not isinstance(job.cluster.encoders, EncoderRange) or carries(cluster_resources(), job):
        return
    from ray.autoscaler.sdk import request_resources

    share = gpus_asked(job)
    bundle = {"CPU": 1.0, **({"GPU": float(math.ceil(share))} if share else {})}
    what = f"a machine with {math.ceil(share)} GPUs" if share else "a machine"
    say(f"the cluster has nothing for an encoder: asked for {what}, waiting at most {wait:,.0f} s")
    request_resources(bundles=[bundle])
    try:
        end = time.monotonic() + wait
        while not carries(cluster_resources(), job):
            if time.monotonic() > end:
                raise JobFailed(
                    f"cluster.address {ray.get_runtime_context().gcs_address}: no machine for an encoder came in "
                    f"{wait:,.0f} s; see that the cluster grows (its autoscaler's log says what it lacks), and run the "
                    "job again to go on"
                )
            time.sleep(0.5)
    finally:
        request_resources(bundles=[])  # from here on the actors hold what they need


def carries(there: Resources, job: Job) -> bool:
    share = gpus_asked(job)
    return bool(encoders_that_fit(share, there.gpus)) if share else sum(there.cpus) >= 1


def gpus_asked(job: Job) -> float:
    """Of an encoder, where the job says that encoders are on GPUs; 0 where it does not."""
    share = job.cluster.gpus_per_encoder
    if job.engine.device == "cpu":
        return 0.0
    if isinstance(share, float | int):
        return float(share)
    return 1.0 if job.engine.device.startswith("cuda") else 0.0
