"""Arguments of transformers' tokenizers that have no use here, and names that nobody knows."""

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from xlmr_ray.config import LOADING as OF_CONFIG
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign

log = logging.getLogger(__name__)

ONE_KIND = "there is one kind of tokenizer"
FOREIGN = Foreign(
    "from_pretrained",
    ignored={
        **OF_CONFIG.ignored,
        "use_fast": ONE_KIND,
        "from_slow": ONE_KIND,
        "legacy": ONE_KIND,
        "backend": ONE_KIND,
        "tokenizer_type": ONE_KIND,
        "config": "the folder says what its tokenizer is",
        "do_lower_case": "XLM-R's vocabulary has capitals, and transformers' class ignores it, too",
        "keep_accents": "XLM-R's vocabulary has accents, and transformers' class ignores it, too",
        "verbose": "warnings are logging's",
    },
    refused={**OF_CONFIG.refused, "gguf_file": "convert the checkpoint to one with a tokenizer.json"},
)
FOREIGN_SAVING = Foreign(
    "save_pretrained",
    ignored={"safe_serialization": "it is of weights", "max_shard_size": "it is of weights"},
    refused={"legacy_format": "save_vocabulary writes a sentencepiece model", "save_format": "it is tokenizer.json"},
)


def kept_aside(function: str, given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The arguments whose names nobody knows, with a warning. Raises UserError where one is nearly a known name."""
    unknown = {name: value for name, value in given.items() if name not in known}
    for name in unknown:
        if near := difflib.get_close_matches(name, known, 1, 0.85):
            raise UserError(f"{function}: {name!r} is no argument of a tokenizer, did you mean {near[0]!r}?")
    warn_unknown(function, unknown)
    return unknown


def warn_unknown(function: str, unknown: Iterable[str]) -> None:
    if names := ", ".join(unknown):
        log.warning("%s: no use for %s: ignored", function, names)
