"""`generate`: prompts to texts, greedily, by sampling or by beam search. The ids are those of transformers'."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign
from xlmr_ray.model.generation.beam import beam_search
from xlmr_ray.model.generation.cache import Borrowed, DynamicCache, as_ours
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.sampling import Streamer, sample
from xlmr_ray.model.generation.scores import Allowed, Pieces, Stop, at_end_token, processors, stop_strings
from xlmr_ray.model.generation.steps import DecodingSteps, Kept, LanguageModel, drawing
from xlmr_ray.model.generation.warpers import Processor
from xlmr_ray.model.outputs import ModelOutput

NEW_TOKENS = 20  # transformers', where no length is set


FOREIGN = Foreign(
    "generate",
    ignored={
        "logits_to_keep": "only the last token's logits are ever computed",
        "low_memory": "all beams are computed at once",
        "use_model_defaults": "a model's own settings are used where a call has none",
        "assistant_early_exit": "a model runs whole",
        "disable_compile": "nothing is compiled",
        "compile_config": "nothing is compiled",
        "trust_remote_code": "no code of a checkpoint is ever run",
    },
    refused={
        "assistant_model": "one model generates",
        "prompt_lookup_num_tokens": "one token is made at a time",
        "custom_generate": "no code of a checkpoint is ever run",
        "synced_gpus": "a model's weights are all on its process's devices",
        "cache_implementation": "the cache grows with the tokens, as transformers' DynamicCache",
        "cache_config": "the cache grows with the tokens, as transformers' DynamicCache",
        "token_healing": "the prompt stays as it is",
        "watermarking_config": "give its processor in logits_processor",
        "top_h": "use top_p, min_p or typical_p",
        "encoder_repetition_penalty": "a decoder's prompt is no encoder's input: use repetition_penalty",
        "encoder_no_repeat_ngram_size": "a decoder's prompt is no encoder's input: use no_repeat_ngram_size",
        "penalty_alpha": "transformers 5 has no contrastive search built in either",
        "dola_layers": "transformers 5 has no DoLa built in either",
        "num_beam_groups": "transformers 5 has no group beam search built in either",
        "diversity_penalty": "transformers 5 has no group beam search built in either",
        "constraints": "transformers 5 has no constrained beam search built in either",
        "force_words_ids": "transformers 5 has no constrained beam search built in either",
        "decoder_input_ids": "a decoder's ids are input_ids",
        "negative_prompt_attention_mask": "give negative_prompt_ids without padding",
    },
)


@dataclass(eq=False, repr=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """`sequences (B, S)`; if asked for, of every step: `scores (B, vocab)` as it was chosen by, `logits (B, vocab)`
    before they were processed, layers' `attentions` and `hidden_states` of the tokens read; the cache.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: DynamicCache | None = None


@dataclass(eq=False, repr=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """`sequences (B, S)`; if scores are asked for, `sequences_scores (B)`, and of every new token the row of the beam
    that it was scored in, `beam_indices (B, new)`, -1 after an end; of all beams what GenerateDecoderOnlyOutput has.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: DynamicCache | None = None


@torch.no_grad()
def generate(
    model: LanguageModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    position_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: DynamicCache | None = None,
    negative_prompt_ids: Tensor | None = None,
    prefix_allowed_tokens_fn: Allowed | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Processor] | None = (),
    stopping_criteria: Stop | Sequence[Stop] | None = (),
    tokenizer: Pieces | None = None,
    streamer: Streamer | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    **settings: Any,
) -> Any:
    """The prompts `input_ids (B, S)` (None: the id of the beginning) and what follows them: `(B * num_return_sequences,
    S + new)`, padded on the right; with `return_dict_in_generate` in an output class.

    `settings` are those of GenerationConfig. They go before what a `generation_config` sets, and that before the
    model's own (`model.generation_config`, from its folder or its configuration); what else transformers takes is in
    FOREIGN. Prompts of several lengths are padded on the left, which `attention_mask (B, S)` tells, or the padding's
    id. `inputs` is another name of `input_ids`. With `inputs_embeds (B, S, hidden)` and no ids only new tokens come
    back. `prefix_allowed_tokens_fn` says of a prompt's number and ids so far which may be next. With `guidance_scale`,
    texts are drawn away from what follows `negative_prompt_ids (B, N)`, or their last token. `generator`: where
    random numbers come from, or one a row; None is torch's own, with whose seed the ids are transformers'.

    Tokens are numbered from 0, and not from `pad_token_id + 1` as `forward` does: so does transformers' `generate`.
    A model is at its best with the positions of its training; `position_ids (B, S)` are counted on from where they end.

    In a model that is no decoder the prompt's tokens read each other both ways, and so do the new ones with
    `use_cache=False`: all tokens are then computed again for each new one. With a cache, as in transformers, a token
    stays as it was when it came.

    Raises UserError for settings that contradict each other, and, before it computes, for more tokens than the model
    has positions for.
    """
    if settings.get("cache_implementation") in ("dynamic", "dynamic_full"):
        settings.pop("cache_implementation")
    chosen = in_force(generation_config, model).having(FOREIGN.left(settings))
    input_ids = inputs if input_ids is None else input_ids
    if input_ids is None and inputs_embeds is not None:
        input_ids = torch.empty(len(inputs_embeds), 0, dtype=torch.long, device=inputs_embeds.device)
    if input_ids is None:
        if chosen.bos_token_id is None:
            raise UserError("generate: give input_ids, or a bos_token_id to begin with")
        count = 1 if encoder_hidden_states is None else len(encoder_hidden_states)
        input_ids = torch.full((count, 1), chosen.bos_token_id, device=model.device)
    if input_ids.dim() != 2 or not (input_ids.numel() or inputs_embeds is not None):
        raise UserError(f"generate: expected input_ids (batch, length), got {tuple(input_ids.shape)}")
    if streamer is not None and chosen.num_beams > 1:
        raise UserError("generate: a beam search has no tokens to stream; set num_beams=1")
    prompt = input_ids.shape[1]
    # Tokens of the prompt that have no ids: all of the embeddings, or none.
    nameless = 0 if inputs_embeds is None else inputs_embeds.shape[1] - prompt
    if nameless and prompt:
        raise UserError(f"generate: {prompt} input_ids for {prompt + nameless} inputs_embeds")
    read = input_ids.new_full((len(input_ids), nameless), -1) if nameless else input_ids
    mask = whole_mask(read, attention_mask, chosen)
    if position_ids is None:
        position_ids = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    for name, given in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if given is not None and given.shape[-1] != read.shape[1]:
            raise UserError(f"generate: {given.shape[-1]} {name} for {read.shape[1]} input_ids")
    position_ids = position_ids.expand(len(input_ids), -1)
    max_length = greatest_length(prompt, nameless, position_ids, chosen, model.config)
    if past_key_values is not None and not chosen.use_cache:
        raise UserError("generate: past_key_values need use_cache=True")
    cache = as_ours(DynamicCache() if chosen.use_cache and past_key_values is None else past_key_values)

    times = max(chosen.num_beams, chosen.num_return_sequences)

    def each(x: Tensor | None) -> Any:
        return None if x is None else x.repeat_interleave(times, 0)

    ids = each(input_ids)
    hidden = None if bool((mask == 1).all()) else each(mask)
    rich = chosen.return_dict_in_generate
    kept = Kept(
        [] if chosen.output_scores and rich else None,
        [] if chosen.output_logits and rich else None,
        [] if chosen.output_attentions and rich else None,
        [] if chosen.output_hidden_states and rich else None,
    )
    steps = DecodingSteps(
        model,
        hidden,
        each(position_ids),
        each(token_type_ids),
        each(encoder_hidden_states),
        each(encoder_attention_mask),
        cache,
        each(inputs_embeds),
        nameless,
        kept,
        replaced_preparation(model),
    )
    own = list(logits_processor or ())
    allowed = prefix_allowed_tokens_fn
    process = processors(chosen, prompt, max_length, hidden, ids.device, own, allowed)
    if chosen.guidance_scale not in (None, 1.0):
        process.insert(0, guidance(model, float(chosen.guidance_scale or 1), each(negative_prompt_ids)))
    stop = any_of(stops(chosen, max_length, ids.device, stopping_criteria or (), tokenizer))
    draw = drawing(generator)
    output: GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput
    if chosen.num_beams > 1:
        sequences, totals, parents = beam_search(steps, ids, chosen, max_length, process, stop, draw)
        scores = totals if chosen.output_scores else None
        output = GenerateBeamDecoderOnlyOutput(sequences, scores, beam_indices=parents)
    else:
        sequences = sample(steps, ids, chosen, process, stop, draw, streamer)
        output = GenerateDecoderOnlyOutput(sequences)
    if not rich:
        return sequences
    for name, value in vars(kept).items():
        setattr(output, name, None if value is None else tuple(value))
    output.past_key_values = past_key_values if isinstance(steps.cache, Borrowed) else steps.cache
    return fields_in_order(output)


def fields_in_order(output: ModelOutput) -> ModelOutput:
    """The output with its entries in the order of its class's fields."""
    return type(output)(**{f.name: output[f.name] for f in fields(cast(Any, output)) if f.name in output})


def replaced_preparation(model: Any) -> Callable[..., dict[str, Any]] | None:
    """A `prepare_inputs_for_generation` that somebody has put on this model in place of its class's, as peft does."""
    found = vars(model).get("prepare_inputs_for_generation")
    own = getattr(type(model), "prepare_inputs_for_generation", None)
    return None if found is None or getattr(found, "__func__", None) is own else found


def guidance(model: LanguageModel, scale: float, negative: Tensor | None) -> Processor:
    """Draws the scores `(B, vocab)` away from those after the negative prompts `(B, N)`, or after the prompts' last
    tokens, which grow by the same new tokens (Sanchez et al. 2023, classifier-free guidance).
    """
    other: dict[str, Any] = {}

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if not other:
            prompts = ids[:, -1:] if negative is None else negative
            # As `forward` numbers them: so does transformers.
            positions = torch.arange(prompts.shape[1], device=ids.device) + model.config.first_position
            other.update(
                ids=prompts,
                steps=DecodingSteps(model, None, positions.expand(len(prompts), -1), None, None, None, DynamicCache()),
            )
        else:
            other["ids"] = torch.cat([other["ids"], ids[:, -1:]], 1)
        without: Tensor = other["steps"].logits(other["ids"]).log_softmax(-1)
        return scale * (scores.log_softmax(-1) - without) + without

    return process


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
        # An id that also ends texts says nothing.
        padded = pad is not None and pad not in settings.eos
        mask = input_ids.ne(pad).long() if padded and pad is not None else torch.ones_like(input_ids)
    if mask.shape != input_ids.shape:
        raise UserError(
            f"generate: attention_mask: expected the shape of input_ids, {tuple(input_ids.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    if len(mask) > 1 and bool((mask[:, -1] == 0).any()):
        warnings.warn(
            "generate: padding on the right stands between a prompt and its text: set padding_side='left' where the "
            "tokenizer is made",
            stacklevel=5,
        )
    return mask


def greatest_length(
    prompt: int, nameless: int, position_ids: Tensor, settings: GenerationConfig, config: XLMRobertaConfig
) -> int:
    """Ids of the longest text, its prompt's with them, of which `nameless` have none. Raises UserError if there is no
    room for a new one, or the model has no positions for them.
    """
    if settings.max_new_tokens is not None:
        if settings.max_length is not None:
            warnings.warn("generate: max_new_tokens goes before max_length", stacklevel=5)
        longest = prompt + settings.max_new_tokens
    elif settings.max_length is not None:
        longest = settings.max_length - nameless
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
    if settings.max_time is not None:
        end = time.monotonic() + settings.max_time
        found.append(lambda ids, scores: torch.full((len(ids),), time.monotonic() > end, device=device))
    if settings.eos:
        found.append(at_end_token(torch.tensor(settings.eos, device=device)))
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
