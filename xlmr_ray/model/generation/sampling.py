"""Text token by token: the likeliest one each time, or one drawn at random."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.scores import Stop
from xlmr_ray.model.generation.steps import DecodingSteps, Draw
from xlmr_ray.model.generation.warpers import Processor


class Streamer(Protocol):
    """Sees the prompts `(B, S)`, then the new tokens `(B)` of every step, then the end."""

    def put(self, value: Tensor) -> None:
        """More ids, on the CPU."""

    def end(self) -> None:
        """No more."""


def sample(
    steps: DecodingSteps,
    ids: Tensor,
    settings: GenerationConfig,
    process: Sequence[Processor],
    stop: Stop,
    draw: Draw,
    streamer: Streamer | None,
) -> Tensor:
    """Prompts `(B, S)` to texts `(B, S + new)`."""
    kept = steps.kept.scores
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    if streamer is not None:
        streamer.put(ids.cpu())
    while bool(going.any()):
        scores = steps.logits(ids)
        for processor in process:
            scores = processor(ids, scores)
        if kept is not None:
            kept.append(scores)
        tokens = draw(scores.softmax(-1), 1)[:, 0] if settings.do_sample else scores.argmax(-1)
        if settings.eos:
            assert settings.pad is not None
            tokens = torch.where(going, tokens, settings.pad)
        ids = torch.cat([ids, tokens[:, None]], 1)
        going = going & ~stop(ids, None if kept is None else tuple(kept))
        if streamer is not None:
            streamer.put(tokens.cpu())
    if streamer is not None:
        streamer.end()
    return ids
