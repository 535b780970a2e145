"""What a model is called with: every argument declared once, and each class's order of those given by position."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from xlmr_ray.errors import UserError
from xlmr_ray.model.argument_checks import values_unknown
from xlmr_ray.model.generation.cache import DynamicCache


@dataclass(frozen=True, kw_only=True, eq=False)
class Arguments:
    """The reference's arguments of `forward`, for B sequences of S tokens.

    `input_ids (B, S)` or `inputs_embeds (B, S, hidden)`; `token_type_ids`, `position_ids (B, S)`. `attention_mask` is
    `(B, past + S)` of ones and zeros, or as it shall act: `(B, 1 or heads, S, past + S)`, boolean or of floats to add.

    A decoder may attend to `encoder_hidden_states (B, S_enc, hidden)`, of which `encoder_attention_mask (B, S_enc)`
    says what to see. With `past_key_values` only new tokens are given: the cache holds the others, and takes these in.

    `labels` (`start_positions` and `end_positions` of answers) make a loss. `logits_to_keep`: the last so many tokens
    (0 is all), or the places of some `(K)`, a row's own `(B, K)`, or a boolean `(B, S)`, which gives a flat result.
    `num_items_in_batch` is how many labels the mean loss of a causal language model is over, where a batch comes in
    parts whose losses are added up; the other classes take it, too, and as in transformers their losses are means of
    their part. The last three default to the configuration's.
    """

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    encoder_hidden_states: Tensor | None = None
    encoder_attention_mask: Tensor | None = None
    past_key_values: DynamicCache | None = None
    use_cache: bool | None = None
    labels: Tensor | None = None
    start_positions: Tensor | None = None
    end_positions: Tensor | None = None
    logits_to_keep: int | Tensor = 0
    num_items_in_batch: int | Tensor | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    return_dict: bool | None = None


# Arguments that only the classes with a use for them take; the others go to the encoder, which every class has.
OWN = {"labels", "start_positions", "end_positions", "logits_to_keep"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
SOURCE = ("encoder_hidden_states", "encoder_attention_mask")
CACHE = ("past_key_values", "use_cache")


def called_with(*order: str) -> Callable[..., Any]:
    """A `forward` that takes these arguments by position, in transformers' order, and those of every class by name.

    It hands `Arguments` to the model's `call`, and refuses by name what the class has no use for.
    """
    takes = {f.name: f for f in fields(Arguments) if f.name in order or f.name not in OWN}
    rest = [key for key in takes if key not in order]

    def forward(self: Any, *positional: Any, **named: Any) -> Any:
        name = type(self).__name__
        # torch.onnx.export's older exporter gives every argument of the signature by position.
        names = (*order, *rest) if values_unknown() else order
        if len(positional) > len(names):
            raise UserError(f"{name}: at most {len(names)} arguments by position, got {len(positional)}")
        by_position = dict(zip(names, positional, strict=False))
        for key in named:
            if key in by_position:
                raise UserError(f"{name}: {key} is given twice, by position and by name")
            if key not in takes:
                near = difflib.get_close_matches(key, takes, 1)
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(takes)}"
                raise UserError(f"{name}: no use for {key}; {hint}")
        return self.call(Arguments(**by_position, **named))

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for kind, keys in (
        (inspect.Parameter.POSITIONAL_OR_KEYWORD, list(order)),
        (inspect.Parameter.KEYWORD_ONLY, rest),
    ):
        parameters += [inspect.Parameter(k, kind, default=takes[k].default, annotation=takes[k].type) for k in keys]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    forward.__doc__ = Arguments.__doc__
    return forward
