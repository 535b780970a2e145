"""The `tokenizers` library's tokenizer, made of a file of some kind, of pieces with scores, or of nothing."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.sentencepiece import Vocabulary, fairseq_vocabulary, read_sentencepiece, read_vocabulary_text

PreTokenizer = Literal["xlm-roberta", "file"]
PRE_TOKENIZERS = get_args(PreTokenizer)
PIECES_AS_TEXT = (".vocab", ".tsv", ".txt")


def backend_from_file(path: Path, special: Mapping[str, str], *, add_prefix_space: bool | None) -> Tokenizer:
    """From a `tokenizer.json` (by its suffix), sentencepiece's text of pieces and scores (`.vocab`), or its model.

    A `tokenizer.json` is taken as it is; `add_prefix_space`, where given, is the one thing that is changed in it.
    `special`: the special tokens by name, which get their ids in a vocabulary of sentencepiece's.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".json":
        return _from_json(path, add_prefix_space)
    prepend = add_prefix_space is not False
    if path.suffix in PIECES_AS_TEXT:
        pieces = read_vocabulary_text(path)
        in_order = [piece for piece, _ in pieces[:4]] == list(special.values())[:4]
        return unigram_backend(
            pieces if in_order else fairseq_vocabulary(pieces, **special), None, add_prefix_space=prepend
        )
    model = read_sentencepiece(path)
    backend = unigram_backend(fairseq_vocabulary(model.pieces, **special), model.charsmap, add_prefix_space=prepend)
    backend.add_tokens(as_symbols(model.symbols))
    return backend


def as_symbols(symbols: Sequence[str]) -> list[AddedToken]:
    """A sentencepiece model's own symbols as added tokens."""
    return [AddedToken(symbol, normalized=False, special=False) for symbol in symbols]


def as_xlm_roberta(backend: Tokenizer, *, add_prefix_space: bool) -> None:
    """Changes a Unigram tokenizer to the one that transformers' XLMRobertaTokenizer makes of its vocabulary: words are
    what whitespace separates, whatever pre-tokenizer the file names, and the normalizer is the character map only.

    A normalizer that has no character map (NFKC, say) is kept: transformers drops it, which only changes ids.
    """
    charsmap = _charsmap(backend)
    if charsmap is not None:
        backend.normalizer = normalizers.Precompiled(charsmap)
    _split_on_whitespace(backend, add_prefix_space)


def is_xlm_roberta(backend: Tokenizer) -> bool:
    """Whether transformers' XLMRobertaTokenizer gives the same ids when it makes its tokenizer of this one's file."""
    if not isinstance(backend.model, Unigram) or not isinstance(backend.normalizer, NoneType | normalizers.Precompiled):
        return False
    other = Tokenizer(Unigram([("<unk>", 0.0)], unk_id=0))
    _split_on_whitespace(other, prepends_space(backend))
    state = backend.pre_tokenizer and backend.pre_tokenizer.__getstate__()
    return bool(state == other.pre_tokenizer.__getstate__())


def lower_first(backend: Tokenizer) -> None:
    """Puts a change to small letters in front of the normalizer, unless there is one in it."""
    before = backend.normalizer
    spec = {} if before is None else json.loads(before.__getstate__())
    if "Lowercase" not in [part.get("type") for part in spec.get("normalizers", [spec])]:
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if before is None else [before])])


def with_flags(backend: Tokenizer, tokens: Sequence[AddedToken]) -> Tokenizer:
    """The tokenizer with its added tokens matched (`lstrip`, `normalized`, ...) as `tokens` of the same content say."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    listed = {token.content: {flag: getattr(token, flag) for flag in flags} for token in tokens}
    known = backend.get_added_tokens_decoder().values()
    if all(getattr(token, flag) == value for token in known for flag, value in listed.get(token.content, {}).items()):
        return backend
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token.update(listed.get(token["content"], {}))
    return Tokenizer.from_str(json.dumps(spec))


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
    """XLM-R's pipeline, as transformers builds it, around a vocabulary whose unknown token has id 3."""
    try:
        backend = Tokenizer(Unigram(vocab=vocabulary, unk_id=3))
    except (TypeError, ValueError) as error:
        raise UserError(f"vocab: expected (piece, score) pairs, the unknown token at index 3 ({error})") from None
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"vocab: {error}") from None
    if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    _split_on_whitespace(backend, add_prefix_space)
    return backend


def prepends_space(backend: Tokenizer) -> bool:
    """Whether a word at the beginning of a text is tokenized as one after a space."""
    return any(part.prepend_scheme != "never" for part in _metaspaces(backend))


def complete(backend: Tokenizer, tokens: list[AddedToken], *, bos: str, eos: str, template: bool) -> None:
    """Add what the vocabulary's file has not: added and special tokens in this order, and XLM-R's template of them (in
    place of the file's own with `template`).
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            backend.add_tokens([token])
    if template or backend.post_processor is None:
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


def _split_on_whitespace(backend: Tokenizer, add_prefix_space: bool) -> None:
    scheme = "always" if add_prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)


def _charsmap(backend: Tokenizer) -> bytes | None:
    """The normalizer's character map, None where it has none."""
    if backend.normalizer is None:
        return None
    spec = json.loads(backend.normalizer.__getstate__())
    found = (part.get("precompiled_charsmap") for part in spec.get("normalizers", [spec]))
    return next((base64.b64decode(charsmap) for charsmap in found if charsmap), None)


def _metaspaces(backend: Tokenizer) -> list[Any]:
    """The Metaspace parts, which hold the setting, in the pre-tokenizer and as the decoder."""
    found: list[Any] = [part for part in _flat(backend.pre_tokenizer) if isinstance(part, pre_tokenizers.Metaspace)]
    return [*found, *([backend.decoder] if isinstance(backend.decoder, decoders.Metaspace) else [])]


def _flat(part: Any) -> list[Any]:
    if not isinstance(part, pre_tokenizers.Sequence):
        return [part] if part is not None else []
    many = len(json.loads(part.__getstate__())["pretokenizers"])
    return [inner for index in range(many) for inner in _flat(part[index])]
