"""What is left to be drawn from when sampling: processors (see `scores.py`) that rule out unlikely tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from xlmr_ray.model.generation.config import GenerationConfig

Processor = Callable[[Tensor, Tensor], Tensor]
NEVER = -torch.inf


def warpers(settings: GenerationConfig, ends: int) -> list[Processor]:
    """Those that the settings ask for, in transformers' order; `ends` is how many tokens end a text."""
    found: list[Processor] = []
    # A beam must be able to go on where all the ends are among the likeliest tokens.
    keep = 1 if settings.num_beams == 1 else max(ends, 1) + 1
    temperature = settings.temperature
    if temperature is not None and temperature != 1.0:
        found.append(lambda ids, scores: scores / temperature)
    if settings.top_k:
        found.append(top_k(max(settings.top_k, keep)))
    if settings.top_p is not None and settings.top_p < 1.0:
        found.append(top_p(settings.top_p, keep))
    if settings.min_p is not None:
        found.append(min_p(settings.min_p, keep))
    if settings.typical_p is not None and settings.typical_p < 1.0:
        found.append(typical_p(settings.typical_p, keep))
    if settings.epsilon_cutoff:
        found.append(epsilon_cutoff(settings.epsilon_cutoff, keep))
    if settings.eta_cutoff:
        found.append(eta_cutoff(settings.eta_cutoff, keep))
    return found


def top_k(count: int) -> Processor:
    """Rules out what is less likely than the `count` likeliest."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        last = scores.topk(min(count, scores.shape[-1]))[0][:, -1:]
        return scores.masked_fill(scores < last, NEVER)

    return process


def top_p(mass: float, keep: int) -> Processor:
    """Keeps the fewest likeliest tokens whose probabilities add up to `mass` (Holtzman et al. 2019), and `keep` at
    least.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        ascending, order = scores.sort(descending=False)
        out = ascending.softmax(-1).cumsum(-1) <= 1 - mass
        out[:, -keep:] = False
        return scores.masked_fill(out.scatter(1, order, out), NEVER)

    return process


def min_p(share: float, keep: int) -> Processor:
    """Rules out tokens whose probability is less than a `share` of the likeliest's; keeps `keep` at least."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        probs = scores.softmax(-1)
        out = probs < share * probs.amax(-1, keepdim=True)
        out.scatter_(1, probs.topk(min(keep, probs.shape[-1])).indices, False)
        return scores.masked_fill(out, NEVER)

    return process


def typical_p(mass: float, keep: int) -> Processor:
    """Keeps the fewest tokens of `mass` in all whose surprise is nearest to the expected one (Meister et al. 2022,
    locally typical sampling), and `keep` at least.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        logs = scores.log_softmax(-1)
        expected = -(logs * logs.exp()).nansum(-1, keepdim=True)
        strange, order = (-logs - expected).abs().sort()
        last = (scores.gather(-1, order).softmax(-1).cumsum(-1) < mass).sum(1).clamp(max=scores.shape[-1] - 1)
        out = strange > strange.gather(1, last[:, None])
        out[:, :keep] = False
        return scores.masked_fill(out.scatter(1, order, out), NEVER)

    return process


def epsilon_cutoff(least: float, keep: int) -> Processor:
    """Rules out tokens of a probability below `least` (Hewitt et al. 2022); keeps `keep` at least."""
    return lambda ids, scores: but_the_likeliest(scores, scores.softmax(-1) < least, keep)


def eta_cutoff(epsilon: float, keep: int) -> Processor:
    """Rules out tokens of a probability below `epsilon`, or below `epsilon ** 0.5 * exp(-entropy)` where that is less
    (Hewitt et al. 2022); keeps `keep` at least.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        entropy = torch.distributions.Categorical(logits=scores).entropy()  # type: ignore[no-untyped-call]
        least = torch.clamp(epsilon**0.5 * torch.exp(-entropy), max=epsilon)
        return but_the_likeliest(scores, scores.softmax(-1) < least[:, None], keep)

    return process


def but_the_likeliest(scores: Tensor, out: Tensor, keep: int) -> Tensor:
    """The scores with those that are out ruled out, but not any of the `keep` likeliest."""
    kept = scores.topk(min(keep, scores.shape[-1]))[0][:, -1:]
    return scores.masked_fill(out & (scores < kept), NEVER)
