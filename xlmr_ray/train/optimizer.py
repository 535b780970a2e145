"""AdamW, with what is usual for encoders: no decay of biases and norms, a warm-up, a linear way down."""

from collections.abc import Sequence

import torch
from torch import nn

from xlmr_ray.train.job import FinetuneJob


def optimizer_of(module: nn.Module, job: FinetuneJob) -> torch.optim.AdamW:
    """Of the parameters that are trained. Biases and norms' weights are not decayed, as in transformers."""
    norms = {id(p) for m in module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if id(parameter) in norms or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": job.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=job.rate, fused=True)


def rate_at(step: int, steps: int, job: FinetuneJob) -> float:
    """The learning rate of a step, from 0 of so many: up over the warm-up's, then down to 0 behind the last."""
    warm = int(job.warmup * steps)
    if step < warm:
        return job.rate * step / max(1, warm)
    return job.rate if job.schedule == "constant" else job.rate * (steps - step) / max(1, steps - warm)


def clip(parameters: Sequence[nn.Parameter], most: float | None) -> float:
    """Scales the gradients to a norm of at most `most`. Returns the norm that they had."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if most is None else most)
    return float(norm)
