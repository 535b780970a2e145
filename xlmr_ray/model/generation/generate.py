"""`generate`: prompts to texts, greedily, by sampling or by beam search. The ids are those of transformers'."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.generation.beam import beam_search
from xlmr_ray.model.generation.cache import DynamicCache
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.sampling import Streamer, sample
from xlmr_ray.model.generation.scores import Pieces, Processor, Stop, ended, processors, stop_strings
from xlmr_ray.model.generation.steps import LanguageModel, Steps, drawing
from xlmr_ray.model.outputs import ModelOutput

NEW_TOKENS = 20  # transformers', where no length is set


@dataclass(eq=False, repr=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """`sequences (B, S)`; if asked for, `scores`: of every new token `(B, vocab)`, as it was chosen by; the cache."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    past_key_values: DynamicCache | None = None


@dataclass(eq=False, repr=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """`sequences (B, S)`; if scores are asked for, `sequences_scores (B)`; the cache."""

    sequences: Tensor
    sequences_scores: Tensor | None = None
    past_key_values: DynamicCache | None = None


@torch.no_grad()
def generate(
    model: LanguageModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Processor] = (),
    stopping_criteria: Stop | Sequence[Stop] = (),
    tokenizer: Pieces | None = None,
    streamer: Streamer | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    **settings: Any,
) -> Any:
    """The prompts `input_ids (B, S)` (None: the id of the beginning) and what follows them: `(B * num_return_sequences,
    S + new)`, padded on the right; with `return_dict_in_generate` in an output class.

    `settings` are those of GenerationConfig. They go before what a `generation_config` sets, and that before the
    model's own (`model.generation_config`, from its folder or its configuration). Prompts of several lengths are padded
    on the left, which `attention_mask (B, S)` tells, or the padding's id. `generator`: where random numbers come from,
    or one a row; None is torch's own, with whose seed the ids are transformers'.

    Tokens are numbered from 0, and not from `pad_token_id + 1` as `forward` does: so does transformers' `generate`.
    A model is at its best with the positions of its training; `position_ids (B, S)` are counted on from where they end.

    In a model that is no decoder the prompt's tokens read each other both ways, and so do the new ones with
    `use_cache=False`: all tokens are then computed again for each new one. With a cache, as in transformers, a token
    stays as it was when it came.

    Raises UserError for settings that contradict each other, and, before it computes, for more tokens than the model
    has positions for.
    """
    chosen = in_force(generation_config, model).having(settings)
    if input_ids is None:
        if chosen.bos_token_id is None:
            raise UserError("generate: give input_ids, or a bos_token_id to begin with")
        count = 1 if encoder_hidden_states is None else len(encoder_hidden_states)
        input_ids = torch.full((count, 1), chosen.bos_token_id, device=model.device)
    if input_ids.dim() != 2 or not input_ids.numel():
        raise UserError(f"generate: expected input_ids (batch, length), got {tuple(input_ids.shape)}")
    if streamer is not None and chosen.num_beams > 1:
        raise UserError("generate: a beam search has no tokens to stream; set num_beams=1")
    mask = whole_mask(input_ids, attention_mask, chosen)
    if position_ids is None:
        position_ids = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    for name, given in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if given is not None and given.shape[-1] != input_ids.shape[1]:
            raise UserError(f"generate: {given.shape[-1]} {name} for {input_ids.shape[1]} input_ids")
    position_ids = position_ids.expand(len(input_ids), -1)
    prompt = input_ids.shape[1]
    max_length = greatest_length(prompt, position_ids, chosen, model.config)
    if past_key_values is not None and not chosen.use_cache:
        raise UserError("generate: past_key_values need use_cache=True")
    cache = DynamicCache() if chosen.use_cache and past_key_values is None else past_key_values

    times = max(chosen.num_beams, chosen.num_return_sequences)
    ids = input_ids.repeat_interleave(times, 0)
    hidden = None if bool((mask == 1).all()) else mask.repeat_interleave(times, 0)
    steps = Steps(
        model,
        hidden,
        position_ids.repeat_interleave(times, 0),
        None if token_type_ids is None else token_type_ids.repeat_interleave(times, 0),
        None if encoder_hidden_states is None else encoder_hidden_states.repeat_interleave(times, 0),
        None if encoder_attention_mask is None else encoder_attention_mask.repeat_interleave(times, 0),
        cache,
    )
    process = processors(chosen, prompt, hidden, ids.device, logits_processor)
    stop = any_of(stops(chosen, max_length, ids.device, stopping_criteria, tokenizer))
    draw = drawing(generator)
    output: GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput
    if chosen.num_beams > 1:
        sequences, totals = beam_search(steps, ids, chosen, max_length, process, stop, draw)
        output = GenerateBeamDecoderOnlyOutput(sequences, totals if chosen.output_scores else None, steps.cache)
    else:
        sequences, scores = sample(steps, ids, chosen, process, stop, draw, streamer)
        output = GenerateDecoderOnlyOutput(sequences, scores, steps.cache)
    return output if chosen.return_dict_in_generate else sequences


def in_force(given: Any, model: LanguageModel) -> GenerationConfig:
    """The model's own settings with those in place that are set in a configuration of ours, or of transformers'."""
    own = getattr(model, "generation_config", None)
    if not isinstance(own, GenerationConfig):
        own = GenerationConfig.of_model(model.config)
    settings = GenerationConfig.of(given)
    if settings is None:
        return own
    plain = asdict(GenerationConfig())
    return own.having({name: value for name, value in asdict(settings).items() if value != plain[name]})


def whole_mask(input_ids: Tensor, attention_mask: Tensor | None, settings: GenerationConfig) -> Tensor:
    """The mask `(B, S)`: the one given, or what is not padding by its id. Warns of padding on the right."""
    pad = settings.pad
    mask = attention_mask
    if mask is None:
        # An id that also ends texts tells nothing.
        padded = pad is not None and pad not in settings.eos
        mask = input_ids.ne(pad).long() if padded and pad is not None else torch.ones_like(input_ids)
    if mask.shape != input_ids.shape:
        raise UserError(
            f"generate: an attention_mask of the shape of input_ids {tuple(input_ids.shape)} is wanted, "
            f"got {tuple(mask.shape)}"
        )
    if len(mask) > 1 and bool((mask[:, -1] == 0).any()):
        warnings.warn(
            "generate: padding on the right stands between a prompt and its text: set padding_side='left' where the "
            "tokenizer is made",
            stacklevel=5,
        )
    return mask


def greatest_length(prompt: int, position_ids: Tensor, settings: GenerationConfig, config: XLMRobertaConfig) -> int:
    """Tokens of the longest text, its prompt with them. Raises UserError if there is no room for a new one, or the
    model has no positions for them.
    """
    if settings.max_new_tokens is not None:
        if settings.max_length is not None:
            warnings.warn("generate: max_new_tokens goes before max_length", stacklevel=5)
        longest = prompt + settings.max_new_tokens
    elif settings.max_length is not None:
        longest = settings.max_length
    else:
        longest = min(prompt + NEW_TOKENS, config.max_position_embeddings)
        warnings.warn(f"generate: max_new_tokens is not set: at most {longest - prompt} are made", stacklevel=5)
    if longest <= prompt:
        raise UserError(
            f"generate: a prompt of {prompt} tokens and a text of at most {longest} with it: set max_new_tokens or cut "
            "the prompt"
        )
    # The last token is not read by the model, so it needs no position.
    last = int(position_ids[:, -1].max())
    room = config.max_position_embeddings - last
    if longest - prompt > room or int(position_ids.max()) >= config.max_position_embeddings:
        raise UserError(
            f"generate: {longest - prompt} new tokens after a prompt of {prompt}, the model has positions for "
            f"{max(room, 0)}: lower max_new_tokens or cut the prompt"
        )
    return longest


def stops(
    settings: GenerationConfig,
    max_length: int,
    device: torch.device,
    own: Stop | Sequence[Stop],
    tokenizer: Pieces | None,
) -> list[Stop]:
    """What ends a text: its length, an end token, a string, and the caller's own."""
    found: list[Stop] = [lambda ids, scores: torch.full((len(ids),), ids.shape[1] >= max_length, device=device)]
    if settings.eos:
        found.append(ended(torch.tensor(settings.eos, device=device)))
    if settings.stop_strings is not None:
        if tokenizer is None:
            raise UserError("generate: stop_strings need tokenizer=, to compare texts with them")
        strings = settings.stop_strings
        found.append(stop_strings([strings] if isinstance(strings, str) else strings, tokenizer))
    return [*found, *(own if isinstance(own, Sequence) else [own])]


def any_of(criteria: Sequence[Stop]) -> Callable[[Tensor, Any], Tensor]:
    """Whether any of them says of a row that it is done, `(B)`."""

    def done(ids: Tensor, scores: Any) -> Tensor:
        found = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for criterion in criteria:
            found = found | torch.as_tensor(criterion(ids, scores), device=ids.device)
        return found

    return done
