"""Names of tensors: what files call them, in one form.

The canonical name of a tensor of the encoder has no prefix (`encoder.layer.0.output.dense.weight`); heads keep theirs
(`lm_head.bias`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WORDS = "embeddings.word_embeddings.weight"
DECODER_WEIGHT, DECODER_BIAS, LM_BIAS = "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"
PREFIXES = ("roberta.", "", "xlm-roberta.", "xlm_roberta.", "camembert.", "bert.")
# A language model's head in BERT's layout, and what it is called here. The longer ones come first.
BERT_HEAD = {
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.transform.": "lm_head.",
    "cls.predictions.": "lm_head.",
}
# Counters that old versions saved beside the weights.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
ENCODER = ("embeddings.", "encoder.")
CROSS = re.compile(r"encoder\.layer\.\d+\.crossattention\.")
OLD_NORM = {".gamma": ".weight", ".beta": ".bias"}
FUSED = re.compile(r"(.*\.attention\.self)\.qkv\.(weight|bias)")


@dataclass(frozen=True)
class Names:
    """The prefix of a checkpoint's encoder, canonical name -> name on disk, and the names of no weights."""

    prefix: str
    on_disk: dict[str, str]
    ignored: tuple[str, ...]


def canonical_names(names: Iterable[str], where: str) -> Names:
    """Canonical names of all the names of a checkpoint. The prefix is decided once, by what stands before the word
    embeddings.

    `where` is for messages. Raises UserError when these are not the names of an XLM-R checkpoint.
    """
    names = sorted(names)
    found = sorted({name.removesuffix(WORDS) for name in names if name.endswith(WORDS)})
    # An MLM file may hold the tied matrix under the head's name only: the position embeddings show the prefix then.
    if not found:
        positions = "embeddings.position_embeddings.weight"
        found = sorted({name.removesuffix(positions) for name in names if name.endswith(positions)})
    if not found:
        starts = ", ".join(dict.fromkeys(name.split(".")[0] + "." for name in names)) or "nothing"
        raise UserError(f"{where}: no {WORDS}: not an XLM-R checkpoint; its names begin with {starts[:200]}")
    if len(found) > 1:
        raise UserError(f"{where}: {len(found)} encoders, under {', '.join(map(repr, found[:4]))}: expected one")
    (prefix,) = found
    if prefix not in PREFIXES:
        known = ", ".join(map(repr, PREFIXES))
        raise UserError(
            f"{where}: the encoder's names begin with {prefix!r}, those of an XLM-R checkpoint with one of {known}"
        )
    on_disk: dict[str, str] = {}
    ignored = []
    for name in names:
        canonical = modern(name.removeprefix(prefix))
        if canonical in BUFFERS:
            ignored.append(name)
        elif canonical in on_disk:
            raise UserError(f"{where}: {on_disk[canonical]!r} and {name!r} are two names of one tensor")
        else:
            on_disk[canonical] = name
    return Names(prefix, on_disk, tuple(ignored))


def module_name(name: str) -> str:
    """The canonical name of a parameter of one of our modules."""
    return name.removeprefix("roberta.").removeprefix("bert.")


def is_encoder(canonical: str) -> bool:
    """Whether a tensor is the encoder's own. Pooler and cross-attention are not: they come with what is built on it."""
    return canonical.startswith(ENCODER) and not CROSS.match(canonical)


def is_pooler(canonical: str) -> bool:
    return canonical.startswith("pooler.")


def same_tensor(canonical: str) -> tuple[str, ...]:
    """Other names under which a file may hold a tensor, whatever the configuration ties."""
    return {DECODER_BIAS: (LM_BIAS,), LM_BIAS: (DECODER_BIAS,)}.get(canonical, ())


def unfused(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A fused `qkv` parameter `(3 * hidden, …)` as the three that files hold; any other as it is."""
    match = FUSED.fullmatch(name)
    if not match:
        return {name: tensor}
    parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
    return {f"{match[1]}.{part}.{match[2]}": piece for part, piece in parts}


def bert_name(name: str) -> str:
    """The name in a file of BERT's layout of a parameter of one of our modules."""
    if name.startswith("lm_head.dense."):
        return name.replace("lm_head.", "cls.predictions.transform.", 1)
    if name.startswith("lm_head.layer_norm."):
        return name.replace("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm.", 1)
    return name.replace("lm_head.", "cls.predictions.", 1) if name.startswith("lm_head.") else name


def modern(name: str) -> str:
    """What a tensor with one of the other names of a layer is called here."""
    for theirs, here in BERT_HEAD.items():
        if name.startswith(theirs):
            name = here + name.removeprefix(theirs)
    for old, new in OLD_NORM.items():
        if name.endswith(("LayerNorm" + old, "layer_norm" + old)):
            return name.removesuffix(old) + new
    return name


def names_of_files(module: Any, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Takes the names that files of BERT's layout have for a language model's head: `load_state_dict` is given them by
    transformers' Trainer, which goes on from a file.
    """
    for name in [name for name in state_dict if name.startswith(f"{prefix}cls.predictions.")]:
        state_dict[prefix + modern(name.removeprefix(prefix))] = state_dict.pop(name)
