"""The configuration of a model: every parameter and default of the reference, and the keys that it does not know kept
as they came.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from xlmr_ray.errors import UserError

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(kw_only=True)
class XLMRobertaConfig:
    """Architecture and labels of an XLM-RoBERTa checkpoint (`config.json`).

    Defaults are the reference's (transformers 5.6), which are not those of the public checkpoints: base has
    `vocab_size=250002`, `max_position_embeddings=514`, `type_vocab_size=1` and `layer_norm_eps=1e-5`.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int | list[int] = 2
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    architectures: list[str] | None = None
    num_labels: int | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    dtype: str | None = None
    model_type: str = "xlm-roberta"
    attn_implementation: str = "sdpa"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"config: hidden_size {self.hidden_size} cannot be split over {self.num_attention_heads} heads"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise UserError(f"config: problem_type {self.problem_type!r} is none of {', '.join(PROBLEM_TYPES)}")
        if self.id2label is not None and (self.num_labels is None or self.num_labels == len(self.id2label)):
            self.id2label = {int(i): label for i, label in self.id2label.items()}
        else:
            # As in the reference, a number of labels that differs from the labels given replaces them.
            self.id2label = {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
            self.label2id = None
        self.num_labels = len(self.id2label)
        if self.label2id is None:
            self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def labels(self) -> list[str]:
        """The label names in the order of the head's outputs."""
        assert self.id2label is not None
        return [self.id2label.get(i, f"LABEL_{i}") for i in range(len(self.id2label))]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """The most tokens a text may have (514 positions hold 512 tokens, as the first two are not used)."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """The position of a text's first token."""
        return self.pad_token_id + 1

    @property
    def skips_padding(self) -> bool:
        """Whether a padding id inside a text has the position `pad_token_id`, and the tokens after it are numbered as
        if it were not there.
        """
        return True

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> "XLMRobertaConfig":
        """From the content of a `config.json`; `overrides` win. Unknown keys of the file are kept in `extra`, unknown
        overrides refused.
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        for name in overrides:
            if name not in known:
                raise UserError(f"{name!r} is no argument and no parameter of XLMRobertaConfig")
        values = dict(values)
        values.pop("attn_implementation", None)
        if values.get("torch_dtype") is not None:
            values.setdefault("dtype", values["torch_dtype"])
        values.pop("torch_dtype", None)
        given = {k: v for k, v in values.items() if k in known}
        if values.get("pad_token_id", 1) is None:
            given.pop("pad_token_id")
        if "num_labels" in overrides or "id2label" in overrides:
            for name in ("num_labels", "label2id"):
                given.pop(name, None)
        extra = {k: v for k, v in values.items() if k not in known}
        return cls(**{**given, **overrides}, extra=extra)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> "XLMRobertaConfig":
        """Of a checkpoint, named as for the models' `from_pretrained`; its weights are not fetched."""
        from xlmr_ray.checkpoint.files import resolve  # here: what finds checkpoints stands on configurations
        from xlmr_ray.checkpoint.folder import read_config

        folder = resolve(
            source,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            token=token,
            weights=False,
        )
        return cls.from_dict(read_config(folder), **overrides)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds; transformers reads it."""
        values = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("extra", "attn_implementation", "num_labels")
        }
        return {**self.extra, **{k: v for k, v in values.items() if v is not None or k == "classifier_dropout"}}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` into the folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        (Path(folder) / "config.json").write_text(text + "\n", "utf-8")
