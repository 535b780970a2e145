"""The library's tokenizer, made of whatever holds the vocabulary: a file of some kind, pairs, or nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.sentencepiece import Vocabulary, fairseq_vocabulary, read_sentencepiece, read_vocabulary_text


def backend_from_file(path: Path, special: Mapping[str, str], *, add_prefix_space: bool | None) -> Tokenizer:
    """From a `tokenizer.json` (by its suffix), sentencepiece's text of pieces and scores (`.vocab`), or its model.

    A `tokenizer.json` is taken as it is; `add_prefix_space`, where given, is the one thing that is changed in it.
    `special`: the special tokens by name, which take their places in a vocabulary of sentencepiece's.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".json":
        return _from_json(path, add_prefix_space)
    pieces, charsmap = (
        (read_vocabulary_text(path), b"") if path.suffix in (".vocab", ".tsv", ".txt") else read_sentencepiece(path)
    )
    vocabulary = pieces if pieces[0][0] == special["bos_token"] else fairseq_vocabulary(pieces, **special)
    return unigram_backend(vocabulary, charsmap, add_prefix_space=add_prefix_space is not False)


def as_vocabulary(vocab: Any) -> Vocabulary:
    """(piece, score) pairs in order of id, from such pairs or from a mapping of pieces to scores in that order."""
    if isinstance(vocab, Mapping):
        if any(isinstance(score, int) for score in vocab.values()):
            raise UserError(
                "vocab: got a mapping of pieces to ids, which a Unigram vocabulary cannot do without scores; give "
                "(piece, score) pairs in order of id, or a file that has them"
            )
        vocab = vocab.items()
    try:
        return [(piece, float(score)) for piece, score in vocab]
    except (TypeError, ValueError) as error:
        raise UserError(f"vocab: expected (piece, score) pairs in order of id ({error})") from None


def unigram_backend(vocabulary: Vocabulary, charsmap: bytes | None, *, add_prefix_space: bool) -> Tokenizer:
    """XLM-R's pipeline, as the reference builds it, around a vocabulary whose unknown token has id 3."""
    try:
        backend = Tokenizer(Unigram(vocab=vocabulary, unk_id=3))
    except (TypeError, ValueError) as error:
        raise UserError(f"vocab: expected (piece, score) pairs, the unknown token at place 3 ({error})") from None
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"vocab: {error}") from None
    if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    scheme = "always" if add_prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return backend


def prepends_space(backend: Tokenizer) -> bool:
    """Whether a word at the beginning of a text is tokenized as one after a space."""
    return any(part.prepend_scheme != "never" for part in _metaspaces(backend))


def complete(backend: Tokenizer, tokens: list[AddedToken], *, bos: str, eos: str) -> None:
    """Add what the vocabulary's file has not: added and special tokens in this order, and XLM-R's template of them."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            backend.add_tokens([token])
    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A", eos],
            pair=[bos, "$A", eos, eos, "$B", eos],
            special_tokens=[(token, backend.token_to_id(token)) for token in (bos, eos)],
        )


def _from_json(path: Path, add_prefix_space: bool | None) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer that the tokenizers library reads ({error})") from None
    if add_prefix_space is None or add_prefix_space == prepends_space(backend):
        return backend
    parts = _metaspaces(backend)
    if not parts:
        raise UserError(f"{path}: add_prefix_space={add_prefix_space}: this tokenizer has no such setting")
    for part in parts:
        part.prepend_scheme = "always" if add_prefix_space else "never"
    return backend


def _metaspaces(backend: Tokenizer) -> list[Any]:
    """The Metaspace parts, which hold the setting, in the pre-tokenizer and as the decoder."""
    found: list[Any] = [part for part in _flat(backend.pre_tokenizer) if isinstance(part, pre_tokenizers.Metaspace)]
    return [*found, *([backend.decoder] if isinstance(backend.decoder, decoders.Metaspace) else [])]


def _flat(part: Any) -> list[Any]:
    if not isinstance(part, pre_tokenizers.Sequence):
        return [part] if part is not None else []
    many = len(json.loads(part.__getstate__())["pretokenizers"])
    return [inner for place in range(many) for inner in _flat(part[place])]
