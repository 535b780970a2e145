"""One step of generating text: the model's side of it, and the drawing of random tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.generation.cache import DynamicCache

Draw = Callable[[Tensor, int], Tensor]


class LanguageModel(Protocol):
    """An encoder or decoder with the language modelling head."""

    config: XLMRobertaConfig
    lm_head: Any

    @property
    def base_model(self) -> Any:
        """The model without the head."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""


@dataclass
class Kept:
    """What every step leaves where it is asked for (a list): the logits `(B, vocab)` before they are processed, each
    layer's attentions `(B, heads, S, keys)` and hidden states `(B, S, hidden)` of the tokens read in the step, and the
    scores that a token was chosen by.
    """

    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None
    attentions: list[tuple[Tensor, ...]] | None = None
    hidden_states: list[tuple[Tensor, ...]] | None = None


@dataclass
class DecodingSteps:
    """Scores of the next token, and what grows with the text: cache, mask and positions.

    `attention_mask` (None: nothing is hidden), `position_ids` and `token_type_ids` are `(B, S)` of the prompt; the
    cross-attention reads `encoder_hidden_states (B, E, hidden)`. A prompt may begin as `inputs_embeds (B, S, hidden)`,
    of which `nameless` have no ids: none, or all. `prepare` makes the model's arguments of transformers' instead.
    """

    model: LanguageModel
    attention_mask: Tensor | None
    position_ids: Tensor
    token_type_ids: Tensor | None
    encoder_hidden_states: Tensor | None
    encoder_attention_mask: Tensor | None
    cache: DynamicCache | None

    inputs_embeds: Tensor | None = None
    nameless: int = 0
    kept: Kept = field(default_factory=Kept)
    prepare: Callable[..., dict[str, Any]] | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Logits `(B, vocab)`, fp32, of the token after the ids `(B, S)`; only what the cache has not is computed."""
        length = ids.shape[1] + self.nameless
        self.grow(length)
        known = 0 if self.cache is None else self.cache.get_seq_length()
        logits = (self.asked(ids, known) if self.prepare is None else self.prepared(ids, known)).to(
            device=ids.device, dtype=torch.float32, copy=True
        )
        if self.kept.logits is not None:
            self.kept.logits.append(logits)
        return logits

    def asked(self, ids: Tensor, known: int) -> Tensor:
        """Logits `(B, vocab)` of the model for the ids, of which the cache knows that many tokens."""
        device = self.model.device
        new: Tensor | None = ids[:, max(0, known - self.nameless) :].to(device)
        embeds = self.inputs_embeds
        if embeds is not None and known < embeds.shape[1]:
            later = ids[:, embeds.shape[1] - self.nameless :].to(device)
            words = self.model.base_model.embeddings.word_embeddings(later)
            embeds, new = torch.cat([embeds.to(device), words], 1)[:, known:], None
        else:
            embeds = None
        output = self.model.base_model(
            new,
            inputs_embeds=embeds,
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
            position_ids=self.position_ids[:, known:].to(device),
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[:, known:].to(device),
            encoder_hidden_states=self.encoder_hidden_states,
            encoder_attention_mask=self.encoder_attention_mask,
            past_key_values=self.cache,
            # The cache given is filled; a model that is no decoder makes none.
            use_cache=self.cache is not None and self.model.config.is_decoder,
            output_attentions=self.kept.attentions is not None,
            output_hidden_states=self.kept.hidden_states is not None,
            return_dict=True,
        )
        self.keep(output)
        # The vocabulary is large: only the last token goes through the head.
        logits: Tensor = self.model.lm_head(output.last_hidden_state[:, -1:])[:, -1]
        return logits

    def prepared(self, ids: Tensor, known: int) -> Tensor:
        """Logits `(B, vocab)` of the model called with what somebody (peft) makes of transformers' arguments."""
        assert self.prepare is not None
        mask = torch.ones_like(self.position_ids) if self.attention_mask is None else self.attention_mask
        given = self.prepare(
            ids,
            next_sequence_length=1 if known else None,
            past_key_values=self.cache,
            attention_mask=mask,
            position_ids=self.position_ids,
            token_type_ids=self.token_type_ids,
            inputs_embeds=self.inputs_embeds,
            encoder_hidden_states=self.encoder_hidden_states,
            encoder_attention_mask=self.encoder_attention_mask,
            use_cache=self.cache is not None,
            is_first_iteration=not known,
        )
        output = cast(Any, self.model)(
            **given,
            logits_to_keep=1,
            output_attentions=self.kept.attentions is not None,
            output_hidden_states=self.kept.hidden_states is not None,
            return_dict=True,
        )
        if self.cache is not None and output.past_key_values is not None:
            self.cache = output.past_key_values
        self.keep(output)
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, output: Any) -> None:
        for name in ("attentions", "hidden_states"):
            if (kept := getattr(self.kept, name)) is not None:
                kept.append(getattr(output, name))

    def grow(self, length: int) -> None:
        """What goes with the tokens, for a text of that length: new ones are seen, counted on, of the last's type."""
        new = length - self.position_ids.shape[1]
        if not new:
            return
        last = self.position_ids[:, -1:]
        count = torch.arange(1, new + 1, device=last.device)
        self.position_ids = torch.cat([self.position_ids, last + count], 1)
        if self.attention_mask is not None:
            self.attention_mask = torch.cat([self.attention_mask, self.attention_mask.new_ones(len(last), new)], 1)
        if self.token_type_ids is not None:
            self.token_type_ids = torch.cat([self.token_type_ids, self.token_type_ids[:, -1:].expand(-1, new)], 1)

    def reorder(self, rows: Tensor) -> None:
        """Goes on with these rows `(B)` of the cache: text i is now what text `rows[i]` was."""
        if self.cache is not None:
            self.cache.reorder_cache(rows.to(self.model.device))


def drawing(generator: torch.Generator | Sequence[torch.Generator] | None) -> Draw:
    """Draws so many tokens a row, `(B, count)`, from probabilities `(B, vocab)`, with one generator (None: torch's
    own) or with one a row, so that a row's do not depend on the others.
    """

    def draw(probs: Tensor, count: int) -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return torch.multinomial(probs, count, generator=generator)
        rows = zip(probs, generator, strict=True)
        return torch.stack([torch.multinomial(row, count, generator=own) for row, own in rows])

    return draw
