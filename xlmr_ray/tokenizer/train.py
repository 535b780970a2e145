"""A tokenizer like another one, with a vocabulary learned from texts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, trainers
from tokenizers.models import Unigram

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.special_tokens import Token


def trained(
    backend: Tokenizer,
    texts: Iterable[str] | Iterable[Sequence[str]],
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[Token],
    renamed: Mapping[str, str],
) -> Tokenizer:
    """The backend's normalizer, words, added tokens and template with another Unigram vocabulary, of `vocab_size`
    entries or as many as the texts have; the added tokens come first. `renamed`: new names of special tokens.

    Raises UserError for a backend of another kind.
    """
    spec = json.loads(backend.to_str())
    if spec["model"]["type"] != "Unigram":
        raise UserError(f"train_new_from_iterator: expected a Unigram vocabulary, this one is {spec['model']['type']}")
    added = [
        AddedToken(renamed.get(token["content"], token["content"]), **{key: token[key] for key in HOW})
        for token in spec["added_tokens"]
    ]
    unknown = spec["model"]["vocab"][spec["model"]["unk_id"] or 0][0]
    unknown = renamed.get(unknown, unknown)
    fresh = Tokenizer(Unigram([(unknown, 0.0)], 0, byte_fallback=False))
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if spec[part] is not None:
            setattr(fresh, part, getattr(backend, part))
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[*added, *new_special_tokens], unk_token=unknown, show_progress=False
    )
    try:
        fresh.train_from_iterator(texts, trainer=trainer, length=length)
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"train_new_from_iterator: {vocab_size} entries: {error}") from None
    if spec["post_processor"] is None:
        return fresh
    return Tokenizer.from_str(
        json.dumps({**json.loads(fresh.to_str()), "post_processor": numbered(spec["post_processor"], fresh, renamed)})
    )


HOW = ("single_word", "lstrip", "rstrip", "normalized", "special")


def numbered(processor: Any, backend: Tokenizer, renamed: Mapping[str, str]) -> Any:
    """A post-processor as JSON has it, with the ids and the names that its tokens have in this backend."""
    if isinstance(processor, list):
        return [numbered(part, backend, renamed) for part in processor]
    if not isinstance(processor, dict):
        return processor
    out = {key: numbered(value, backend, renamed) for key, value in processor.items()}
    for name in ("cls", "sep"):
        if name in out:
            token = renamed.get(out[name][0], out[name][0])
            out[name] = [token, backend.token_to_id(token)]
    if "SpecialToken" in out:
        out["SpecialToken"]["id"] = renamed.get(out["SpecialToken"]["id"], out["SpecialToken"]["id"])
    if "special_tokens" in out:
        names = [renamed.get(name, name) for name in out["special_tokens"]]
        out["special_tokens"] = {
            name: {"id": name, "ids": [backend.token_to_id(name)], "tokens": [name]} for name in names
        }
    return out
