"""Two methods beside `generate` that libraries and scripts call: a step's arguments, and the scores of what came."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ASIDE = ("labels", "next_sequence_length")


def prepare_inputs(
    model: Any,
    input_ids: Tensor,
    next_sequence_length: int | None = None,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    is_first_iteration: bool | None = False,
    **others: Any,
) -> dict[str, Any]:
    """The arguments of `forward` for a step: of the ids `(B, S)` so far the last `next_sequence_length`, or in the
    first step the `inputs_embeds`; positions and types for those; the others as they are. peft puts a method of its
    own in this one's place, which calls it.
    """
    given = {name: value for name, value in others.items() if value is not None and name not in ASIDE}
    if inputs_embeds is not None and is_first_iteration:
        given |= {"input_ids": None, "inputs_embeds": inputs_embeds}
        length = inputs_embeds.shape[1]
    else:
        given["input_ids"] = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        length = given["input_ids"].shape[1]
    for name in ("position_ids", "token_type_ids"):
        if name in given:
            given[name] = given[name][..., -length:]
    if past_key_values is not None:
        given["past_key_values"] = past_key_values
    if attention_mask is not None:
        given["attention_mask"] = attention_mask
    return given


def transition_scores(
    model: Any,
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score `(B, new)` of every new token of `sequences (B, S + new)`: of a step's `scores (rows, vocab)` its own,
    in the row that `beam_indices (B, new)` name, 0 where that is -1; log probabilities with `normalize_logits`.
    """
    steps = torch.stack(tuple(scores))
    if normalize_logits:
        steps = steps.log_softmax(-1)
    if beam_indices is None:
        rows = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, len(steps))
    else:
        longest = int((beam_indices >= 0).sum(-1).max())
        rows = beam_indices[:, :longest]
    count = rows.shape[1]
    tokens = sequences[:, sequences.shape[1] - count :]
    found = steps[torch.arange(count, device=sequences.device), rows.clamp(min=0), tokens]
    return found.masked_fill(rows < 0, 0.0)
