"""Beam search: the likeliest texts of a few that are followed side by side.

As in transformers, everything has a fixed shape, and what may not be chosen has 1e9 taken off its score rather than
being removed: the order of what is left, down to its rounding, is transformers'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.scores import Stop
from xlmr_ray.model.generation.steps import DecodingSteps, Draw
from xlmr_ray.model.generation.warpers import Processor

OUT = -1e9


@dataclass
class Finished:
    """The best texts so far for each of P prompts and K beams: `texts (P, K, max_length)`, `scores` with the length
    taken into account, `done` (a real one, not an empty row) and `new`, its new tokens, all `(P, K)`; of the beams
    that each new token was scored in the `rows (P, K, new)`, -1 where there is none.
    """

    texts: Tensor
    scores: Tensor
    done: Tensor
    new: Tensor
    rows: Tensor

    def best_of(self, others: "Finished") -> "Finished":
        """The best K of both."""
        both = [torch.cat(pair, 1) for pair in zip(vars(self).values(), vars(others).values(), strict=True)]
        best = both[1].topk(self.scores.shape[1])[1]
        return Finished(*(rows(x, best) for x in both))


def rows(x: Tensor, chosen: Tensor) -> Tensor:
    """The chosen `(P, N)` of `x (P, M, ...)`, as `(P, N, ...)`."""
    return x.take_along_dim(chosen.view(*chosen.shape, *[1] * (x.dim() - 2)), 1)


def beam_search(
    steps: DecodingSteps,
    ids: Tensor,
    settings: GenerationConfig,
    max_length: int,
    process: Sequence[Processor],
    stop: Stop,
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts `(P * beams, S)`, each `beams` times, to texts `(P * sequences, S + new)`, their scores
    `(P * sequences)`, mean log probabilities of the new tokens where the length penalty is 1, and the rows `(P *
    sequences, new)` of the beams that each new token was scored in.
    """
    beams, penalty, early = settings.num_beams, settings.length_penalty, settings.early_stopping
    prompts, prompt = len(ids) // beams, ids.shape[1]
    # All the beams may end at once: enough candidates that as many go on.
    wide = max(2, 1 + len(settings.eos)) * beams
    # As in transformers: an id 0 of padding does not count as one.
    fill = (settings.pad or settings.eos[0]) if settings.eos else -1
    running = torch.full((prompts, beams, max_length), fill, device=ids.device)
    running[:, :, :prompt] = ids.view(prompts, beams, prompt)
    # All beams of a prompt begin alike: only the first counts in the first step.
    scores = torch.zeros(prompts, beams, device=ids.device)
    scores[:, 1:] = OUT
    none = torch.zeros_like(scores, dtype=torch.bool)
    lineage = torch.full((prompts, beams, max_length - prompt), -1, device=ids.device)
    finished = Finished(running.clone(), torch.full_like(scores, OUT), none, none.long(), lineage.clone())
    hopeful = torch.ones(prompts, 1, dtype=torch.bool, device=ids.device)
    first_beams = torch.arange(wide, device=ids.device) < beams
    offsets = torch.arange(prompts, device=ids.device)[:, None] * beams
    length = prompt
    while True:
        texts = running[:, :, :length].flatten(0, 1)
        likely = steps.logits(texts).log_softmax(-1)
        for processor in process:
            likely = processor(texts, likely)
        if steps.kept.scores is not None:
            steps.kept.scores.append(likely)
        vocab = likely.shape[-1]
        total = (likely.view(prompts, beams, vocab) + scores[:, :, None]).flatten(1)
        if settings.do_sample:
            picked = draw(total.softmax(-1), wide)
            top = total.gather(1, picked)
        else:
            top, picked = total.topk(wide)
        parents = picked // vocab
        candidates = rows(running, parents)
        candidates[:, :, length] = picked % vocab
        lineages = rows(lineage, parents)
        lineages[:, :, length - prompt] = parents + offsets
        length += 1
        ends = stop(candidates[:, :, :length].flatten(0, 1), None).view(prompts, wide)

        open_scores = top + ends.float() * OUT
        onward = open_scores.topk(beams)[1]
        running, scores, lineage = rows(candidates, onward), rows(open_scores, onward), rows(lineages, onward)

        new = length - prompt
        final = top / (new**penalty)
        full = finished.done.all(1, keepdim=True) & (early is True)
        ends_now = ends & first_beams
        for barred in (full, ~hopeful, ~ends_now):
            final = final + barred.float() * OUT
        ended = Finished(candidates, final, ends_now, torch.full_like(picked, new), lineages)
        finished = finished.best_of(ended)

        steps.reorder((rows(parents, onward) + offsets).flatten())
        longest = max_length - prompt if early == "never" and penalty > 0 else new
        worst = torch.where(finished.done, finished.scores.amin(1, keepdim=True), OUT)
        hopeful = hopeful & (scores[:, :1] / (longest**penalty) > worst).any(1, keepdim=True)
        enough = early is True and bool(finished.done.all())
        if enough or not bool(hopeful.any()) or bool(ends.all()):
            break
    count = settings.num_return_sequences
    longest = prompt + int(finished.new[:, :count].max())
    texts, parents = finished.texts[:, :count, :longest], finished.rows[:, :count, : longest - prompt]
    return texts.flatten(0, 1), finished.scores[:, :count].flatten(), parents.flatten(0, 1)
