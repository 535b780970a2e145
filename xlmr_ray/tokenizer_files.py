"""The files a tokenizer is kept in, and the library's tokenizer made from them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from xlmr_ray.errors import UserError
from xlmr_ray.sentencepiece import Vocabulary

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"


def unigram_backend(vocabulary: Vocabulary, charsmap: bytes | None, *, add_prefix_space: bool) -> Tokenizer:
    """XLM-R's pipeline, as the reference builds it, around a vocabulary whose unknown token has id 3."""
    try:
        backend = Tokenizer(Unigram(vocab=[(piece, float(score)) for piece, score in vocabulary], unk_id=3))
    except (TypeError, ValueError) as error:
        raise UserError(f"vocab: expected (piece, score) pairs, the unknown token at place 3 ({error})") from None
    if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    scheme = "always" if add_prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return backend


def existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path


def load_backend(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(existing(path)))
    except UserError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer that the tokenizers library reads ({error})") from None


def load_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected an object, got {type(loaded).__name__}")
    return loaded


def content(token: str | AddedToken | dict[str, Any]) -> str:
    if isinstance(token, str):
        return token
    return str(token["content"] if isinstance(token, dict) else token.content)


def as_token(token: str | AddedToken | dict[str, Any]) -> str | AddedToken:
    """A special token as the configuration files hold it: a string, or a dictionary of how it is matched."""
    if not isinstance(token, dict):
        return token
    how = {name: token[name] for name in ("single_word", "lstrip", "rstrip") if name in token}
    return AddedToken(token["content"], normalized=token.get("normalized", False), special=True, **how)
