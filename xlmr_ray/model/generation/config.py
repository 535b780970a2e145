"""How text is generated: the settings of `generate` by transformers' names, and the file of a checkpoint's own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.text.nearest import nearest_or_all

FILE = "generation_config.json"

# What a file may hold beside the settings, and does not decide which tokens come out of this model.
ASIDE = {
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "cache_implementation",
    "decoder_start_token_id",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "return_legacy_cache",
    "target_lookbehind",
    "transformers_version",
}


@dataclass(kw_only=True)
class GenerationConfig:
    """Settings of `generate`; the defaults are transformers' (transformers 5).

    Length: `max_new_tokens`, or `max_length` with the prompt (neither: 20 new ones); `min_new_tokens` or `min_length`
    keep the end token away before. Sampling, with `do_sample`: `temperature`, then the `top_k` likeliest tokens, then
    the fewest that hold `top_p` of the probability, then those of at least `min_p` of the likeliest's, then
    `typical_p`, `epsilon_cutoff` and `eta_cutoff`. Beams: `num_beams`, `length_penalty` (the exponent of the length
    that scores are divided by), `early_stopping` (True: as soon as there are `num_beams` answers; False: when better
    ones are unlikely; "never": when they are impossible), `num_return_sequences`. Either: `repetition_penalty`,
    `no_repeat_ngram_size`, `suppress_tokens`, `begin_suppress_tokens`, `bad_words_ids`, `sequence_bias`,
    `exponential_decay_length_penalty`, `forced_bos_token_id`, `forced_eos_token_id`, `remove_invalid_values`,
    `renormalize_logits`, `guidance_scale`, `max_time` (seconds, after which no step begins), `stop_strings` (which
    need `generate`'s `tokenizer`). With `return_dict_in_generate` the output has what `output_scores`,
    `output_logits`, `output_attentions` and `output_hidden_states` ask for. None switches a setting off. A model's
    own, `model.generation_config`, may be changed, field by field.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = 0
    do_sample: bool = False
    temperature: float | None = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    min_p: float | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    repetition_penalty: float | None = 1.0
    no_repeat_ngram_size: int | None = 0
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: dict[tuple[int, ...], float] | list[list[Any]] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    guidance_scale: float | None = None
    typical_p: float | None = 1.0
    epsilon_cutoff: float | None = 0.0
    eta_cutoff: float | None = 0.0
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    output_scores: bool = False
    output_logits: bool | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict_in_generate: bool = False

    def __post_init__(self) -> None:
        check_setting("max_new_tokens", self.max_new_tokens, 1)
        check_setting("max_length", self.max_length, 1)
        check_setting("min_new_tokens", self.min_new_tokens, 0)
        check_setting("min_length", self.min_length, 0)
        check_setting("top_k", self.top_k, 0)
        check_setting("num_beams", self.num_beams, 1)
        check_setting("num_return_sequences", self.num_return_sequences, 1)
        check_setting("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        if self.do_sample and self.temperature is not None and not self.temperature > 0:
            raise UserError(f"generate: temperature must be above 0, got {self.temperature}; greedy is do_sample=False")
        shares = ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
        for name, value in ((name, getattr(self, name)) for name in shares):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"generate: {name} must be from 0 to 1, got {value}")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise UserError(f"generate: repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f"generate: early_stopping must be True, False or 'never', got {self.early_stopping!r}")
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.do_sample:
            raise UserError(
                f"generate: {self.num_return_sequences} return sequences of a greedy search would be equal: "
                "set do_sample=True or num_beams"
            )
        if 1 < self.num_beams < self.num_return_sequences:
            raise UserError(
                f"generate: num_return_sequences {self.num_return_sequences} is more than the {self.num_beams} beams"
            )

    @property
    def eos(self) -> list[int]:
        """The ids that end a text; none: only its length ends it."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    @property
    def pad(self) -> int | None:
        """The id that fills up after an end."""
        return self.pad_token_id if self.pad_token_id is not None or not self.eos else self.eos[0]

    def having(self, settings: Mapping[str, Any]) -> Self:
        """With these settings changed. Raises UserError for a name that is not a setting, with the nearest."""
        known = [f.name for f in fields(self)]
        for name in settings:
            if name not in known:
                raise UserError(f"generate has no setting {name!r}{nearest_or_all(name, known, 'it has')}")
        return replace(self, **settings)

    @classmethod
    def of_model(cls, config: XLMRobertaConfig) -> Self:
        """For a checkpoint without a file of settings: special tokens and cache as the model's configuration says."""
        return cls(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            use_cache=config.use_cache,
        )

    @classmethod
    def of(cls, given: Any) -> Self | None:
        """Settings that are given as ours or as transformers' GenerationConfig; None for None. Raises UserError."""
        if given is None or isinstance(given, cls):
            return given
        if not callable(getattr(given, "to_dict", None)):
            raise UserError(f"generate: generation_config: expected a GenerationConfig, got {type(given).__name__}")
        return cls.from_dict(given.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the content of a `generation_config.json`. Raises UserError for a setting that would change the text
        and is not supported: answers without it would silently be others.
        """
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            neutral = value is False or (value is not True and value in (0, 1, [], {}))
            if name not in known and name not in ASIDE and not name.startswith("_") and not neutral:
                raise UserError(f"{FILE}: {name} = {value!r} is not supported; remove it to generate without")
        return cls(**{name: value for name, value in given.items() if name in known})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self | None:
        """Of a checkpoint's folder; None where it has no such file."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `generation_config.json`, which transformers reads, with what differs from the defaults."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        plain = asdict(type(self)())
        values = {name: value for name, value in asdict(self).items() if value != plain[name]}
        (Path(folder) / FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def check_setting(name: str, value: object, least: int) -> None:
    """Raises UserError where the setting is there and no whole number from `least` on."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UserError(f"generate: {name} must be a whole number from {least} on, got {value!r}")
