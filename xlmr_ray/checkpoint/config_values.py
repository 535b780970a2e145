"""What `config.json` may hold: each value that a model is made of, checked before any of it is used."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlmr_ray.errors import UserError

# Beyond it, sizes in bytes do not fit 64 bits; and a model of so many layers would be made for hours.
LARGEST, MOST_LAYERS = 2**31 - 1, 1000


def check_values(path: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError that names the key, what it holds and what it should. Keys that no layer reads are not looked
    at; those that are absent have their defaults.
    """
    for name, (fits, expected) in CHECKS.items():
        if name in values and not fits(values[name]):
            raise UserError(f"{path}: {name}: got {short_value(values[name])}, expected {expected}")
    if not (values.get("hidden_size", 768) % values.get("num_attention_heads", 12) == 0):
        raise UserError(
            f"{path}: hidden_size {values.get('hidden_size', 768)} cannot be split over "
            f"{values.get('num_attention_heads', 12)} heads"
        )
    labels = values.get("id2label")
    if labels is not None and len({int(key) for key in labels}) < len(labels):
        raise UserError(f"{path}: id2label: two names for one label: {short_value(labels)}")
    check_padding(path, values)


def check_padding(path: Path, values: Mapping[str, Any]) -> None:
    """Raises UserError where the padding token is not in the vocabulary, or leaves no position for a text."""
    bert = values.get("model_type") == "bert"
    padding = values.get("pad_token_id")
    padding = (0 if bert else 1) if padding is None else padding
    vocabulary, positions = values.get("vocab_size", 30522), values.get("max_position_embeddings", 512)
    if padding >= vocabulary:
        raise UserError(f"{path}: pad_token_id: got {padding}, expected 0 to {vocabulary - 1} (vocab_size)")
    if not bert and padding + 1 >= positions:
        raise UserError(
            f"{path}: max_position_embeddings: got {positions}, expected more than pad_token_id + 1, {padding + 1}: "
            "the first token's position"
        )


def short_value(value: Any) -> str:
    """A value in a message, short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def whole_from(least: int, most: int = LARGEST) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_amount(value: Any) -> bool:
    """A number from 0 on that is one: JSON readers know NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def is_share(value: Any) -> bool:
    return is_amount(value) and value <= 1


def or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def one_or_several(value: Any) -> bool:
    """Token ids of which any ends a text."""
    several = value if isinstance(value, list) else [value]
    return all(map(whole_from(0), several))


def are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def names_by_number(value: Any) -> bool:
    """Labels: their numbers, which JSON writes as text, and their names, which may be numbers themselves."""
    return (
        isinstance(value, dict)
        and all(str(key).isascii() and str(key).isdigit() and int(key) <= LARGEST for key in value)
        and all(isinstance(name, str | int | float) for name in value.values())
    )


def numbers_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(whole_from(0), value.values()))


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


SIZE = (whole_from(1), f"a whole number from 1 to {LARGEST}")
TOKEN = (or_null(whole_from(0)), "a token's id, a whole number from 0 on, or null")
RATE = (is_share, "a number from 0 to 1")
SWITCH = (is_bool, "true or false")
FLAG = (or_null(is_bool), "true, false or null")
TEXT = (or_null(lambda value: isinstance(value, str)), "a string or null")
NUMBER = (is_amount, "a number from 0 on")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": (whole_from(0, MOST_LAYERS), f"a whole number from 0 to {MOST_LAYERS}"),
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "type_vocab_size": SIZE,
    "hidden_act": (lambda value: isinstance(value, str), "a string"),
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "classifier_dropout": (or_null(is_share), "a number from 0 to 1, or null"),
    "initializer_range": NUMBER,
    "layer_norm_eps": NUMBER,
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "eos_token_id": (or_null(one_or_several), "a token's id, a list of such, or null"),
    "use_cache": FLAG,
    "is_decoder": SWITCH,
    "add_cross_attention": SWITCH,
    "tie_word_embeddings": SWITCH,
    "output_attentions": FLAG,
    "output_hidden_states": FLAG,
    "return_dict": FLAG,
    "use_return_dict": FLAG,
    "architectures": (or_null(are_strings), "a list of strings, or null"),
    "id2label": (or_null(names_by_number), "an object of whole numbers and names, or null"),
    "label2id": (or_null(numbers_by_name), "an object of names and whole numbers, or null"),
    "num_labels": (or_null(whole_from(1, 10**6)), "a whole number from 1 on"),
    "problem_type": TEXT,
    "dtype": TEXT,
    "torch_dtype": TEXT,
    "encoder_digest": TEXT,
    "tokenizer_class": TEXT,
    "quantization_config": (or_null(lambda value: isinstance(value, dict)), "an object, or null"),
}
