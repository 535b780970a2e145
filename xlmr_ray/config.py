"""The configuration of a model: transformers' parameters and defaults, open as theirs: a key that no layer reads is
kept and read back.
"""

import copy
import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

LOADING = Foreign(
    "from_pretrained",
    ignored={
        "trust_remote_code": "no code of a checkpoint is ever run",
        "code_revision": "no code of a checkpoint is ever run",
        "resume_download": "downloads are always resumed",
        "mirror": "HF_ENDPOINT names another hub",
        "_from_auto": "how transformers' own classes call each other",
        "_from_pipeline": "how transformers' own classes call each other",
        "_commit_hash": "how transformers' own classes call each other",
    },
    refused={
        "gguf_file": "convert the checkpoint to safetensors",
        "use_auth_token": "it is called token now",
        "proxies": "set HTTPS_PROXY in the environment",
    },
)
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Other names that transformers has for a parameter.
ALIASES = {
    "torch_dtype": "dtype",
    "use_return_dict": "return_dict",
    "_attn_implementation": "attn_implementation",
    "_name_or_path": "name_or_path",
}
# Parameters that every architecture has: as in transformers, a file has them only where they differ from the default.
COMMON = (
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
)
# None stands for the default of these.
FILLED = ("attn_implementation", "id2label", "label2id", "pad_token_id")
# Defaults of transformers' BertConfig that are others.
BERT = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
# Of this process, and not of the model: no file has them.
NOT_SAVED = ("attn_implementation", "extra", "name_or_path")


@dataclass(init=False, repr=False, eq=False)
class XLMRobertaConfig:
    """Architecture and labels of an XLM-RoBERTa checkpoint (`config.json`).

    Defaults are transformers' (5.23), which are not those of the public checkpoints: base has `vocab_size=250002`,
    `max_position_embeddings=514`, `type_vocab_size=1` and `layer_norm_eps=1e-5`.

    Every parameter may be set later. `num_labels`, `id2label` and `label2id` stay consistent: another number of labels
    renames them, other labels change `label2id`. Keys that are no parameters are attributes, too, and are saved.
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
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    model_type: str = "xlm-roberta"

    architectures: list[str] | None = None
    id2label: dict[int, str] = field(default_factory=lambda: numbered_labels(2))
    label2id: dict[str, int] = field(default_factory=lambda: inverse(numbered_labels(2)))
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    is_encoder_decoder: bool = False
    chunk_size_feed_forward: int = 0
    attn_implementation: str = "sdpa"
    name_or_path: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        """Parameters by name; the others keep their defaults. Raises UserError for values that contradict."""
        defaults = type(self).__dataclass_fields__
        self.__dict__["extra"] = dict(values.pop("extra", {}))
        self.__dict__["dtype"] = None
        for name, parameter in defaults.items():
            if name != "extra":
                make = parameter.default_factory
                self.__dict__[name] = parameter.default if make is MISSING else make()
        if values.get("model_type") == "bert":
            self.__dict__.update(BERT)
        labels = values.pop("num_labels", None)
        ids = values.get("label2id") or {}
        if values.get("id2label") is None and sorted(ids.values()) == list(range(labels or self.num_labels)):
            values["id2label"] = {i: label for label, i in ids.items()}
        for name, value in values.items():
            if value is not None or ALIASES.get(name, name) not in FILLED:
                setattr(self, name, value)
        if labels is not None and labels != self.num_labels:
            if values.get("id2label") is not None:
                log.warning("config: num_labels=%d for %d names in id2label: renamed", labels, self.num_labels)
            self.num_labels = labels
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"config: hidden_size {self.hidden_size} cannot be split over {self.num_attention_heads} heads"
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise UserError(f"config: problem_type {self.problem_type!r} is none of {', '.join(PROBLEM_TYPES)}")

    def __setattr__(self, name: str, value: Any) -> None:
        name = ALIASES.get(name, name)
        if name == "id2label":
            value = {int(i): label for i, label in value.items()}
            if any(self.label2id.get(label) != i for i, label in value.items()) or len(self.label2id) > len(value):
                self.__dict__["label2id"] = inverse(value)
        if name in type(self).__dataclass_fields__ or name in PROPERTIES:
            object.__setattr__(self, name, value)
        else:
            self.extra[name] = value

    def __getattr__(self, name: str) -> Any:
        """Of names that are no attribute: transformers' other ones, and keys that are no parameters."""
        if name in ALIASES:
            return getattr(self, ALIASES[name])
        try:
            return self.__dict__["extra"][name]
        except KeyError:
            raise AttributeError(f"XLMRobertaConfig has no {name!r}") from None

    def __delattr__(self, name: str) -> None:
        if self.extra.pop(name, self) is self:
            raise AttributeError(f"XLMRobertaConfig: {name!r} is no key that could be removed")

    def __iter__(self) -> Iterator[str]:
        """The names of parameters and of further keys: what `in` looks at."""
        return iter(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, XLMRobertaConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"XLMRobertaConfig {self.to_json_string()}"

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != self.num_labels:
            self.id2label = numbered_labels(count)

    @property
    def dtype(self) -> "torch.dtype | None":
        """Of the weights in the files; set by name or as torch's."""
        name = self.__dict__["dtype"]
        if name is None:
            return None
        import torch  # here: those who only read a configuration need not wait for it

        found = getattr(torch, name, None)
        return found if isinstance(found, torch.dtype) else None

    @dtype.setter
    def dtype(self, dtype: "torch.dtype | str | None") -> None:
        self.__dict__["dtype"] = None if dtype is None else str(dtype).removeprefix("torch.")

    @property
    def labels(self) -> list[str]:
        """The label names in the order of the head's outputs."""
        return [str(self.id2label.get(i, f"LABEL_{i}")) for i in range(len(self.id2label))]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def bert_layout(self) -> bool:
        """Whether it is of BERT's layout, as multilingual-e5-small is: the same layers, with positions from 0, names
        that begin with `bert.`, and the pooler under a classifier of texts.
        """
        return self.model_type == "bert"

    @property
    def max_length(self) -> int:
        """The most tokens a text may have (514 positions hold 512 tokens, as the first two are not used; in BERT's
        layout 512 do).
        """
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """The position of a text's first token."""
        return 0 if self.bert_layout else self.pad_token_id + 1

    @property
    def skips_padding(self) -> bool:
        """Whether a padding id inside a text has the position `pad_token_id`, and the tokens after it are numbered as
        if it were not there.
        """
        return not self.bert_layout

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "XLMRobertaConfig":
        """Itself: there is no other part."""
        return self

    # From and to dictionaries and files

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Self:
        """From the content of a `config.json`; `overrides` win. Keys that are no parameters are kept.

        An override that is no parameter and no key of the file is kept with a warning, or refused where it resembles a
        parameter's name.
        """
        values = {name: value for name, value in config_dict.items() if name not in NOT_SAVED}
        if values.get("torch_dtype") is not None:
            values.setdefault("dtype", values["torch_dtype"])
        values.pop("torch_dtype", None)
        for name in sorted(overrides.keys() - known(values)):
            near = difflib.get_close_matches(name, PARAMETERS, 1, 0.8)
            if near:
                raise UserError(f"config: {name!r} is no parameter of XLMRobertaConfig, did you mean {near[0]!r}?")
            log.warning("config: %s is no parameter of XLMRobertaConfig: kept, and read by no layer", name)
        # Labels of a call replace those of the file.
        if overrides.keys() & {"num_labels", "id2label"}:
            same = "id2label" not in overrides and overrides["num_labels"] == len(values.get("id2label") or ())
            replaced = {"num_labels"} if same else {"num_labels", "label2id", "id2label"}
            values = {name: value for name, value in values.items() if name not in replaced}
        return cls(**{**values, **overrides})

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        return cls.from_dict(json.loads(Path(json_file).read_text("utf-8")))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Any:
        """Of a checkpoint, named as for the models' `from_pretrained`; its weights are not fetched. `overrides` as in
        `from_dict`, or arguments of transformers without use here (LOADING); with `return_unused_kwargs`, those that
        are no parameters come back beside the configuration.
        """
        from xlmr_ray.checkpoint.files import resolve  # here: what finds checkpoints stands on configurations
        from xlmr_ray.checkpoint.folder import read_config

        folder = resolve(
            pretrained_model_name_or_path,
            revision=revision,
            local_files_only=local_files_only,
            force_download=force_download,
            subfolder=subfolder,
            cache_dir=cache_dir,
            token=token,
            weights=False,
        )
        values = read_config(folder)
        overrides = LOADING.left(overrides)
        overrides = {"name_or_path": str(pretrained_model_name_or_path), **overrides}
        if not return_unused_kwargs:
            return cls.from_dict(values, **overrides)
        unused = {name: overrides.pop(name) for name in overrides.keys() - known(values)}
        return cls.from_dict(values, **overrides), unused

    def to_dict(self) -> dict[str, Any]:
        """All parameters and further keys, as JSON has them."""
        values = {name: value for name, value in vars(self).items() if name not in NOT_SAVED}
        return copy.deepcopy({**self.extra, **values})

    def to_diff_dict(self) -> dict[str, Any]:
        """What a `config.json` holds: all but those of every architecture's parameters that have their defaults."""
        plain = XLMRobertaConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if name not in COMMON or value != plain[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        Path(json_file_path).write_text(self.to_json_string(use_diff), "utf-8")

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `config.json` into the folder; transformers reads it."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(save_directory) / "config.json")

    def update(self, config_dict: Mapping[str, Any]) -> None:
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """From `name=value,name=value`, each read by the type of the value before. Raises UserError."""
        for part in update_str.split(","):
            name, _, text = part.partition("=")
            before = getattr(self, name, None)
            if not isinstance(before, int | float | str):
                raise UserError(f"config: {name!r} is no number, string or boolean that {part!r} could set")
            try:
                boolean = {"true": True, "1": True, "false": False, "0": False}
                setattr(self, name, boolean[text.lower()] if isinstance(before, bool) else type(before)(text))
            except (KeyError, ValueError):
                raise UserError(f"config: {name}: expected a {type(before).__name__}, got {text!r}") from None


def numbered_labels(count: int) -> dict[int, str]:
    """Labels without names of their own, as transformers calls them."""
    return {i: f"LABEL_{i}" for i in range(count)}


def inverse(labels: Mapping[int, str]) -> dict[str, int]:
    return {label: i for i, label in labels.items()}


def known(values: Mapping[str, Any]) -> set[str]:
    """The names that a configuration with these values has."""
    return {*PARAMETERS, *ALIASES, *values}


PROPERTIES = {name for name, value in vars(XLMRobertaConfig).items() if isinstance(value, property)}
PARAMETERS = [*XLMRobertaConfig.__dataclass_fields__, "num_labels", "dtype"]
PARAMETERS.remove("extra")
