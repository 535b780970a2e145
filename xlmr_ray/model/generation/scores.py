"""What changes the scores of the next token before one is chosen, and what says that a text is done.

A processor takes the ids so far `(B, S)` and the scores `(B, vocab)`, and returns scores; a stop takes the ids and the
scores of all steps (None unless they are kept) and returns for each row whether it is done, `(B)`. Transformers' have
the same form, and can be given.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from xlmr_ray.model.generation.config import GenerationConfig

Processor = Callable[[Tensor, Tensor], Tensor]
Stop = Callable[[Tensor, Any], Any]
WORD = "▁"  # stands for the space before a word in a piece of the tokenizer
NEVER = -torch.inf


class Pieces(Protocol):
    """The part of a tokenizer that stop strings need."""

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The pieces of ids."""


def processors(
    settings: GenerationConfig, prompt: int, mask: Tensor | None, device: torch.device, own: Sequence[Processor]
) -> list[Processor]:
    """The processors that the settings ask for, in transformers' order: `own` ones come before those of sampling.

    `prompt` is its length; `mask (B, prompt)` tells its padding, None where there is none.
    """
    found: list[Processor] = []
    eos = torch.tensor(settings.eos, dtype=torch.long, device=device)
    if settings.repetition_penalty not in (None, 1.0):
        starts = None if mask is None else (mask != 0).int().argmax(dim=1).to(device)
        found.append(repetition_penalty(float(settings.repetition_penalty or 1), starts))
    if settings.no_repeat_ngram_size:
        found.append(no_repeated_ngrams(settings.no_repeat_ngram_size))
    least = settings.min_length or 0 if settings.min_new_tokens is None else prompt + settings.min_new_tokens
    if least and len(eos):
        found.append(min_length(least, eos))
    if settings.suppress_tokens:
        banned = torch.tensor(settings.suppress_tokens, device=device)
        found.append(lambda ids, scores: scores.index_fill(1, banned, NEVER))
    found += own
    if not settings.do_sample:
        return found
    # A beam must be able to go on where all the ends are among the likeliest tokens.
    keep = 1 if settings.num_beams == 1 else max(len(eos), 1) + 1
    temperature = settings.temperature
    if temperature is not None and temperature != 1.0:
        found.append(lambda ids, scores: scores / temperature)
    if settings.top_k:
        found.append(top_k(max(settings.top_k, keep)))
    if settings.top_p is not None and settings.top_p < 1.0:
        found.append(top_p(settings.top_p, keep))
    if settings.min_p is not None:
        found.append(min_p(settings.min_p, keep))
    return found


def repetition_penalty(penalty: float, starts: Tensor | None) -> Processor:
    """Makes tokens that are there already less likely (Keskar et al. 2019, CTRL): scores above 0 are divided by the
    penalty, those below multiplied. `starts (B)`: where a row's padding on the left ends.
    """

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        seen = ids
        if starts is not None:
            # Padding counts as a token behind the vocabulary.
            padding = torch.arange(ids.shape[1], device=ids.device)[None] < starts[:, None]
            seen = ids.masked_fill(padding, scores.shape[-1])
        wide = torch.nn.functional.pad(scores, (0, 1))
        found = wide.gather(1, seen)
        return wide.scatter(1, seen, torch.where(found < 0, found * penalty, found / penalty))[:, :-1]

    return process


def no_repeated_ngrams(size: int) -> Processor:
    """Rules out every token that would repeat `size` tokens in a row."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] < size:
            return scores
        windows = ids.unfold(1, size, 1)
        again = (windows[:, :, :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
        # A window that the text does not end like bans a token behind the vocabulary.
        banned = torch.where(again, windows[:, :, -1], scores.shape[-1])
        out = torch.zeros(len(scores), scores.shape[-1] + 1, dtype=torch.bool, device=scores.device)
        return scores.masked_fill(out.scatter_(1, banned, True)[:, :-1], NEVER)

    return process


def min_length(least: int, eos: Tensor) -> Processor:
    """No end before the text has `least` tokens, its prompt's with them."""
    return lambda ids, scores: scores.index_fill(1, eos, NEVER) if ids.shape[1] < least else scores


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


def ended(eos: Tensor) -> Stop:
    """The last token is an end."""
    return lambda ids, scores: torch.isin(ids[:, -1], eos)


def stop_strings(strings: Sequence[str], tokenizer: Pieces) -> Stop:
    """The last token completes one of the strings, though the string may end within it."""

    def done(ids: Tensor, scores: Any) -> Tensor:
        # No string spans more tokens than it has characters.
        tail = ids[:, -max(map(len, strings)) :].tolist()
        return torch.tensor([completes(tokenizer.convert_ids_to_tokens(row), strings) for row in tail]).to(ids.device)

    return done


def completes(pieces: Sequence[str], strings: Sequence[str]) -> bool:
    """Whether one of the strings is in the text of the pieces and reaches into the last one."""
    text = "".join(pieces).replace(WORD, " ")
    before = len(text) - len(pieces[-1])
    return any(text.find(string, max(0, before - len(string) + 1)) >= 0 for string in strings)
