"""What changes the scores of the next token before one is chosen, and what says that a text is done.

A processor takes the ids so far `(B, S)` and the scores `(B, vocab)`, and returns scores; a stop takes the ids and the
scores of all steps (None unless they are kept) and returns for each row whether it is done, `(B)`. Transformers' have
the same form, and can be given.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from xlmr_ray.errors import UserError
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.warpers import NEVER, Processor, warpers

Allowed = Callable[[int, Tensor], Iterable[int]]
Stop = Callable[[Tensor, Any], Any]
WORD = "▁"  # stands for the space before a word in a piece of the tokenizer


class Pieces(Protocol):
    """The part of a tokenizer that stop strings need."""

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The pieces of ids."""


def processors(
    settings: GenerationConfig,
    prompt: int,
    max_length: int,
    mask: Tensor | None,
    device: torch.device,
    own: Sequence[Processor],
    allowed: Allowed | None = None,
) -> list[Processor]:
    """The processors that the settings ask for, in transformers' order: `own` ones come before those of sampling.

    `prompt` is its length; `mask (B, prompt)` tells its padding, None where there is none. `allowed` names the tokens
    that may come next, for a row's prompt and its ids.
    """
    found: list[Processor] = []
    eos = torch.tensor(settings.eos, dtype=torch.long, device=device)
    if settings.sequence_bias:
        found.append(sequence_bias(by_sequence(settings.sequence_bias)))
    if settings.repetition_penalty not in (None, 1.0):
        starts = None if mask is None else (mask != 0).int().argmax(dim=1).to(device)
        found.append(repetition_penalty(float(settings.repetition_penalty or 1), starts))
    if settings.no_repeat_ngram_size:
        found.append(no_repeated_ngrams(settings.no_repeat_ngram_size))
    if settings.bad_words_ids:
        # As in transformers an end is not forbidden.
        words = [tuple(word) for word in settings.bad_words_ids if list(word) not in [[one] for one in settings.eos]]
        found.append(sequence_bias(dict.fromkeys(words, NEVER)))
    least = settings.min_length or 0 if settings.min_new_tokens is None else prompt + settings.min_new_tokens
    if least and len(eos):
        found.append(min_length(least, eos))
    if allowed is not None:
        found.append(only_allowed(allowed, settings.num_beams))
    if settings.forced_bos_token_id is not None:
        found.append(forced(1, torch.tensor([settings.forced_bos_token_id], device=device)))
    if settings.forced_eos_token_id is not None:
        found.append(forced(max_length - 1, torch.tensor(settings.forced_eos_token_id, device=device).view(-1)))
    if settings.remove_invalid_values:
        found.append(lambda ids, scores: scores.nan_to_num())
    if settings.exponential_decay_length_penalty is not None and len(eos):
        start, factor = settings.exponential_decay_length_penalty
        found.append(decaying_length(prompt + start, factor, eos))
    if settings.suppress_tokens:
        banned = torch.tensor(settings.suppress_tokens, device=device)
        found.append(lambda ids, scores: scores.index_fill(1, banned, NEVER))
    if settings.begin_suppress_tokens:
        first = torch.tensor(settings.begin_suppress_tokens, device=device)
        begin = prompt if prompt > 1 or settings.forced_bos_token_id is None else prompt + 1
        found.append(lambda ids, scores: scores.index_fill(1, first, NEVER) if ids.shape[1] == begin else scores)
    found += own
    if settings.do_sample:
        found += warpers(settings, len(eos))
    if settings.renormalize_logits:
        found.append(lambda ids, scores: scores.log_softmax(-1))
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


def by_sequence(bias: Any) -> dict[tuple[int, ...], float]:
    """The biases of a mapping, or of a list of pairs, as JSON has it. Raises UserError."""
    try:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        return {tuple(map(int, sequence)): float(value) for sequence, value in pairs}
    except (TypeError, ValueError):
        raise UserError(f"generate: sequence_bias: sequences of ids, each with a number, not {bias!r}") from None


def sequence_bias(bias: Mapping[tuple[int, ...], float]) -> Processor:
    """Adds to the score of a sequence's last token where the text ends with those before."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        added = torch.zeros_like(scores)
        for sequence, value in bias.items():
            before = torch.tensor(sequence[:-1], dtype=ids.dtype, device=ids.device)
            if len(before) <= ids.shape[1]:
                rows = (ids[:, ids.shape[1] - len(before) :] == before).all(-1)
                added[rows, sequence[-1]] += value
        return scores + added

    def checked(ids: Tensor, scores: Tensor) -> Tensor:
        count = scores.shape[-1]
        if beyond := [token for sequence in bias for token in sequence if not 0 <= token < count]:
            raise UserError(f"generate: sequence_bias or bad_words_ids: token {beyond[0]}, the vocabulary has {count}")
        return process(ids, scores)

    return checked


def only_allowed(allowed: Allowed, beams: int) -> Processor:
    """Rules out all but the tokens that `allowed` names; where all beams of a prompt have none left, any of these."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, NEVER)
        for row, text in enumerate(ids):
            tokens = list(allowed(row // beams, text))
            if not tokens:
                raise UserError(f"generate: prefix_allowed_tokens_fn allows no token for prompt {row // beams}")
            mask[row, tokens] = 0
        left = scores + mask
        stuck = left.amax(-1).isneginf().view(-1, beams).all(-1).repeat_interleave(beams)
        return torch.where(stuck[:, None], mask, left)

    return process


def forced(length: int, tokens: Tensor) -> Processor:
    """Nothing but one of these tokens after so many."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, NEVER).index_fill(1, tokens, 0.0) if ids.shape[1] == length else scores

    return process


def decaying_length(start: int, factor: float, eos: Tensor) -> Processor:
    """Makes an end likelier by a power of the tokens beyond `start`."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] <= start:
            return scores
        ends = scores[:, eos]
        more = ends.abs() * (factor ** (ids.shape[1] - start) - 1)
        return scores.index_add(1, eos, more.masked_fill(~ends.isfinite(), 0.0))

    return process


def at_end_token(eos: Tensor) -> Stop:
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
