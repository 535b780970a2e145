"""XLMRobertaTokenizer over the `tokenizers` library.

Special tokens typed by a user: a literal `</s>` or `<mask>` in a text becomes that special token, as in the reference.
A job that must not let its texts do so removes them before.
"""

import base64
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
from tokenizers import AddedToken, Encoding, Tokenizer, processors

from xlmr_ray.batch_encoding import BatchEncoding
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.errors import UserError
from xlmr_ray.long_text import LongText
from xlmr_ray.padding import pad
from xlmr_ray.ragged import Ragged, Template, TokenizerError, Truncation, as_strings, encode_batch, encode_ragged
from xlmr_ray.sentencepiece import Vocabulary, fairseq_vocabulary, read_sentencepiece, write_sentencepiece
from xlmr_ray.tokenizer_files import (
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    as_token,
    content,
    existing,
    load_backend,
    load_object,
    unigram_backend,
)
from xlmr_ray.tokenizer_settings import (
    NO_LIMIT,
    TRUNCATIONS,
    Clones,
    Cut,
    Pad,
    asked_padding,
    asked_truncation,
    check_room,
    one_of,
)

__all__ = ["BatchEncoding", "Ragged", "TokenizerError", "XLMRobertaTokenizer"]

log = logging.getLogger(__name__)

Side = Literal["right", "left"]
TokenIds = int | Sequence[int] | Sequence[Sequence[int]] | Any  # numpy arrays and tensors too

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class XLMRobertaTokenizer:
    """Texts to XLM-R ids and back.

    Safe to share between threads: the library's tokenizer that this one holds is never changed after construction, and
    each distinct truncation and padding setting has a clone of its own (`Clones`).
    """

    model_input_names = ("input_ids", "attention_mask")
    is_fast = True
    pad_token_type_id = 0

    def __init__(
        self,
        vocab: str | Vocabulary | None = None,
        *,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        sep_token: str = "</s>",
        cls_token: str = "<s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        mask_token: str | AddedToken = "<mask>",
        extra_special_tokens: Sequence[str | AddedToken] = (),
        add_prefix_space: bool = True,
        precompiled_charsmap: bytes | None = None,
        model_max_length: int | None = None,
        padding_side: Side | None = None,
        truncation_side: Side | None = None,
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        """One source of the vocabulary at most; with none, the special tokens are all there is.

        vocab: (piece, score) pairs in the order of their ids, or the path of a sentencepiece model.
        vocab_file: a `sentencepiece.bpe.model`. tokenizer_file: a `tokenizer.json`, taken as it is: it decides over
        `add_prefix_space` and over how special tokens are matched.
        precompiled_charsmap: the normalizer's character map that goes with `vocab`.
        """
        if isinstance(vocab, str):
            vocab, vocab_file = None, vocab_file or vocab
        if isinstance(vocab, Mapping):
            raise UserError("vocab: got a mapping; a Unigram vocabulary is a list of (piece, score) in order of id")
        if sum(source is not None for source in (vocab, vocab_file, tokenizer_file)) > 1:
            raise UserError("give one of vocab, vocab_file and tokenizer_file")
        self.bos_token, self.eos_token, self.sep_token, self.cls_token = bos_token, eos_token, sep_token, cls_token
        self.unk_token, self.pad_token, self.mask_token = unk_token, pad_token, content(mask_token)
        self.extra_special_tokens = [content(token) for token in extra_special_tokens]
        self.add_prefix_space = add_prefix_space
        self.model_max_length = model_max_length or NO_LIMIT
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.vocab_file = Path(vocab_file) if vocab_file is not None else None
        if tokenizer_file is not None:
            backend = load_backend(Path(tokenizer_file))
        else:
            if vocab_file is not None:
                pieces, precompiled_charsmap = read_sentencepiece(existing(Path(vocab_file)))
                vocab = fairseq_vocabulary(
                    pieces,
                    bos_token=bos_token,
                    pad_token=pad_token,
                    eos_token=eos_token,
                    unk_token=unk_token,
                    mask_token=self.mask_token,
                )
            if vocab is None:
                vocab = [(token, 0.0) for token in (bos_token, pad_token, eos_token, unk_token, self.mask_token)]
            backend = unigram_backend(vocab, precompiled_charsmap, add_prefix_space=add_prefix_space)
        # A file may carry the settings of whoever saved it. Which side is kept; cut and pad are decided by each call.
        self.truncation_side: Side = truncation_side or (backend.truncation or {}).get("direction", "right")
        self.padding_side: Side = padding_side or (backend.padding or {}).get("direction", "right")
        backend.no_truncation()
        backend.no_padding()
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        for token in (*(getattr(self, name) for name in _NAMED[:-1]), mask_token, *extra_special_tokens):
            if content(token) not in known:
                known.add(content(token))
                backend.add_tokens([AddedToken(token, special=True) if isinstance(token, str) else token])
        if backend.post_processor is None:
            backend.post_processor = processors.TemplateProcessing(
                single=[bos_token, "$A", eos_token],
                pair=[bos_token, "$A", eos_token, eos_token, "$B", eos_token],
                special_tokens=[(token, backend.token_to_id(token)) for token in (bos_token, eos_token)],
            )
        self._set_backend(backend)

    def _set_backend(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._single = Template.of(backend, pair=False)
        self._pair = Template.of(backend, pair=True)
        self._long_text = LongText(backend)
        self._clones = Clones(backend)
        self._warned_long = False

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("_clones", "_long_text")}
        return kept | {"_backend": self._backend.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_backend(Tokenizer.from_str(state["_backend"]))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        model_max_length: int | None = None,
        padding_side: Side | None = None,
        truncation_side: Side | None = None,
    ) -> Self:
        """From a folder, `embedded:NAME`, an object store prefix or a hub id.

        `tokenizer.json` is loaded as it is; without one, a tokenizer is built from `sentencepiece.bpe.model`. Names of
        special tokens and the greatest length come from `tokenizer_config.json` and `special_tokens_map.json`; the
        keyword arguments go before them. Raises UserError when there is no such folder or neither file is in it.
        """
        folder = resolve(
            source, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir, weights=False
        )
        if not any((folder / name).is_file() for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE)):
            folder = model_folder(folder)
        config = load_object(folder / "special_tokens_map.json") | load_object(folder / "tokenizer_config.json")
        defaults = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        special = defaults | {name: config[name] for name in _NAMED if config.get(name) is not None}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        length = model_max_length or config.get("model_max_length")
        if not (folder / TOKENIZER_FILE).is_file() and not (folder / SENTENCEPIECE_FILE).is_file():
            raise UserError(f"{source}: no tokenizer in {folder}: looked for {TOKENIZER_FILE} and {SENTENCEPIECE_FILE}")
        as_json = (folder / TOKENIZER_FILE).is_file()
        tokenizer = cls(
            tokenizer_file=folder / TOKENIZER_FILE if as_json else None,
            vocab_file=None if as_json else folder / SENTENCEPIECE_FILE,
            bos_token=content(special["bos_token"]),
            eos_token=content(special["eos_token"]),
            sep_token=content(special["sep_token"]),
            cls_token=content(special["cls_token"]),
            unk_token=content(special.get("unk_token", "<unk>")),
            pad_token=content(special.get("pad_token", "<pad>")),
            mask_token=as_token(special.get("mask_token", "<mask>")),
            extra_special_tokens=[as_token(token) for token in extra] if isinstance(extra, list) else (),
            add_prefix_space=bool(config.get("add_prefix_space", True)),
            model_max_length=int(length) if length else None,
            padding_side=padding_side or config.get("padding_side"),
            truncation_side=truncation_side or config.get("truncation_side"),
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        )
        if (folder / SENTENCEPIECE_FILE).is_file():
            tokenizer.vocab_file = folder / SENTENCEPIECE_FILE
        return tokenizer

    # Encoding

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[Sequence[str]],
        text_pair: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or lists of either, as the reference does.

        padding: False, True or "longest", "max_length". truncation: False, True or "longest_first", "only_first",
        "only_second"; without `max_length` both go by `model_max_length`; `max_length` alone truncates.
        With `is_split_into_words`, a text is a list of words. With `return_overflowing_tokens`, a text gives one
        sequence a window, `stride` tokens shared, and `overflow_to_sample_mapping` tells whose it is.
        Raises TokenizerError with the index of the text that cannot be encoded.
        """
        batched = isinstance(text, (list, tuple)) and (
            not is_split_into_words or (bool(text) and isinstance(text[0], (list, tuple)))
        )
        items = _items(text, text_pair, batched=batched)
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        limit = max_length if max_length is not None else self.model_max_length
        strategy, (padded, length) = asked_truncation(truncation, limit), asked_padding(padding, limit)
        cut = to_pad = None
        if strategy is not None:
            check_room(
                limit, stride, self.num_special_tokens_to_add(text_pair is not None) if add_special_tokens else 0
            )
            cut = Cut(limit, strategy, stride, self.truncation_side)
        if padded:
            side = padding_side or self.padding_side
            to_pad = Pad(length, self.pad_token_id, self.pad_token, side, pad_to_multiple_of)
        if cut and to_pad and pad_to_multiple_of is not None and limit % pad_to_multiple_of:
            raise UserError(f"max_length={limit} is not a multiple of pad_to_multiple_of={pad_to_multiple_of}")
        encodings = encode_batch(
            self._clones.get(cut, to_pad),
            items,
            offsets=True,
            add_special_tokens=add_special_tokens,
            is_pretokenized=is_split_into_words,
        )
        each = [
            [encoding, *encoding.overflowing] if return_overflowing_tokens else [encoding] for encoding in encodings
        ]
        rows: list[Encoding] = list(chain.from_iterable(each))
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if return_token_type_ids:
            data["token_type_ids"] = [row.type_ids for row in rows]
        if return_attention_mask is not False:
            data["attention_mask"] = [row.attention_mask for row in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if return_length:
            data["length"] = [len(row.ids) for row in rows]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, several in enumerate(each) for _ in several]
        if verbose and max_length is None and cut is None:
            self._warn_long(max((len(row) for row in rows), default=0))
        if not batched and return_tensors is None and not return_overflowing_tokens:
            data = {name: value[0] if isinstance(value[0], list) else value for name, value in data.items()}
        return BatchEncoding(data, rows).convert_to_tensors(return_tensors)

    def encode_ragged(
        self,
        texts: Sequence[str] | pa.Array | pa.ChunkedArray,
        pairs: Sequence[str] | pa.Array | pa.ChunkedArray | None = None,
        *,
        max_length: int,
        truncation: Truncation = "longest_first",
        stride: int = 0,
        overflow: bool = False,
        offsets: bool = False,
    ) -> Ragged:
        """Encode a batch to flat arrays, with special tokens, without padding: the ids that `__call__` gives.

        Long texts are cut by characters first where that cannot change the ids (`LongText` says why), so a lone
        surrogate behind the cut goes unseen. With `overflow`, texts longer than `max_length` tokens give windows that
        share `stride` tokens, and nothing is lost. Raises TokenizerError with the index of the first text that cannot
        be encoded, and UserError for arguments that no text could satisfy.
        """
        one_of("truncation", truncation, TRUNCATIONS)
        strings = as_strings(texts)
        seconds = as_strings(pairs) if pairs is not None else None
        if seconds is not None and len(seconds) != len(strings):
            raise UserError(f"got {len(strings)} texts and {len(seconds)} pairs: one pair a text")
        windows = None
        if truncation != "do_not_truncate":
            check_room(max_length, stride, self.num_special_tokens_to_add(seconds is not None))
            if overflow:
                windows = self._clones.get(Cut(max_length, truncation, stride, self.truncation_side), None)
        return encode_ragged(
            self._backend,
            windows,
            self._pair if seconds is not None else self._single,
            self._long_text,
            strings,
            seconds,
            max_length=max_length,
            truncation=truncation,
            keep_left=self.truncation_side == "right",
            offsets=offsets,
        )

    def encode(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        padding_side: Side | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
    ) -> Any:
        """The ids of one text or pair: a list, or with `return_tensors` a tensor or array of shape (1, length)."""
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            is_split_into_words=is_split_into_words,
            padding_side=padding_side,
            return_tensors=return_tensors,
        )["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, *, add_special_tokens: bool = False) -> list[str]:
        """The pieces of a text, as strings."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        *,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
    ) -> BatchEncoding:
        """Pad sequences already encoded: one, a dictionary of lists, or a list of dictionaries (a collate function)."""
        padded, length = asked_padding(padding, max_length if max_length is not None else self.model_max_length)
        return pad(
            encoded_inputs,
            fill={"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1},
            padding=padded,
            length=length,
            multiple=pad_to_multiple_of,
            left=(padding_side or self.padding_side) == "left",
            attention_mask=return_attention_mask is not False,
        ).convert_to_tensors(return_tensors)

    def _warn_long(self, length: int) -> None:
        if length > self.model_max_length and not self._warned_long:
            self._warned_long = True
            log.warning(
                "a text has %d tokens and the model takes %d: pass truncation=True", length, self.model_max_length
            )

    # Decoding and conversion

    def decode(
        self,
        token_ids: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of a sequence of ids; a list of texts for a batch. Lists, arrays and tensors alike."""
        ids: Any = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        elif isinstance(ids, Mapping):
            ids = ids["input_ids"]
        ids = [one.tolist() if hasattr(one, "tolist") else one for one in ids]
        if ids and isinstance(ids[0], (list, tuple)):
            return [self.decode(one, skip_special_tokens, clean_up_tokenization_spaces) for one in ids]
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return _clean_up(text) if clean else text

    def batch_decode(
        self,
        sequences: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """As `decode`, always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a piece, or a list of ids; the unknown token's for a piece that is not in the vocabulary."""
        if isinstance(tokens, str):
            token = self._backend.token_to_id(tokens)
            return self.unk_token_id if token is None else token
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> Any:
        """The piece of an id, or a list of pieces."""
        listed: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(listed, int):
            return self._backend.id_to_token(listed)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(int(token)) for token in listed if int(token) not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        decoder = self._backend.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    # Special tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """`<s> A </s>` or `<s> A </s></s> B </s>`, from ids without special tokens."""
        if token_ids_1 is None:
            return [*self._single.head, *token_ids_0, *self._single.tail]
        pair = self._pair
        return [*pair.head, *token_ids_0, *pair.middle, *token_ids_1, *pair.tail]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Zeros: XLM-R does not use token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for a special token, 0 for a token of the text.

        Without `already_has_special_tokens`, the mask is that of the sequence `build_inputs_with_special_tokens` gives.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise UserError("already_has_special_tokens=True: token_ids_0 is the whole sequence; drop token_ids_1")
            special = set(self.all_special_ids)
            return [int(int(token) in special) for token in token_ids_0]
        first = [0] * len(token_ids_0)
        if token_ids_1 is None:
            return [*[1] * len(self._single.head), *first, *[1] * len(self._single.tail)]
        head, middle, tail = ([1] * len(ids) for ids in (self._pair.head, self._pair.middle, self._pair.tail))
        return [*head, *first, *middle, *[0] * len(token_ids_1), *tail]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return (self._pair if pair else self._single).added

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in _NAMED}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def bos_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.bos_token))

    @property
    def eos_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.eos_token))

    @property
    def sep_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.sep_token))

    @property
    def cls_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.cls_token))

    @property
    def unk_token_id(self) -> int:
        token = self._backend.token_to_id(self.unk_token)
        if token is None:
            raise UserError(f"the unknown token {self.unk_token!r} is not in the vocabulary")
        return int(token)

    @property
    def pad_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.pad_token))

    @property
    def mask_token_id(self) -> int:
        return int(self.convert_tokens_to_ids(self.mask_token))

    # The vocabulary, and saving

    @property
    def vocab_size(self) -> int:
        """Entries of the model's vocabulary, added tokens not counted."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The library's tokenizer. Do not change its settings: calls in other threads use it."""
        return self._backend

    @property
    def max_len_single_sentence(self) -> int:
        return self.model_max_length - self._single.added

    @property
    def max_len_sentences_pair(self) -> int:
        return self.model_max_length - self._pair.added

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that could change the ids: part of a run's identity."""
        known = json.dumps([self.special_tokens_map, self.truncation_side], sort_keys=True)
        return hashlib.sha256((self._backend.to_str() + known).encode()).hexdigest()[:16]

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`; the reference loads them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "XLMRobertaTokenizer",
            **self.special_tokens_map,
            "extra_special_tokens": self.extra_special_tokens,
            "add_prefix_space": self.add_prefix_space,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
        }
        self._backend.save(str(folder / TOKENIZER_FILE))
        files = {"tokenizer_config.json": config, "special_tokens_map.json": self.special_tokens_map}
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return tuple(str(folder / name) for name in (TOKENIZER_FILE, *files))

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str]:
        """Write `sentencepiece.bpe.model`: a copy of the file that this came with, or one made of the vocabulary."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{SENTENCEPIECE_FILE}"
        if not target.parent.is_dir():
            raise UserError(f"{save_directory}: no such folder to save the vocabulary in")
        if self.vocab_file is not None and self.vocab_file.is_file():
            if self.vocab_file.resolve() != target.resolve():
                shutil.copyfile(self.vocab_file, target)
            return (str(target),)
        spec = json.loads(self._backend.to_str())
        parts = (spec["normalizer"] or {}).get("normalizers") or [spec["normalizer"] or {}]
        charsmap = next((part["precompiled_charsmap"] for part in parts if "precompiled_charsmap" in part), "")
        entries = [(piece, score) for piece, score in spec["model"]["vocab"]]
        write_sentencepiece(target, entries, base64.b64decode(charsmap))
        return (str(target),)

    def __repr__(self) -> str:
        return f"XLMRobertaTokenizer({len(self)} tokens, model_max_length={self.model_max_length})"


def _items(text: Any, text_pair: Any, *, batched: bool) -> list[Any]:
    """What the library takes: texts, or tuples of two."""
    if not batched:
        if text is None:
            raise UserError("got text=None, expected a text or a list of texts")
        # The reference takes an empty second text for none, when it is not in a list.
        return [(text, text_pair)] if text_pair else [text]
    if text_pair is None:
        return list(text)
    if isinstance(text_pair, str) or len(text_pair) != len(text):
        got = "one" if isinstance(text_pair, str) else str(len(text_pair))
        raise UserError(f"got {len(text)} texts and {got} text_pair: expected a list of as many")
    return list(zip(text, text_pair, strict=True))


def _clean_up(text: str) -> str:
    """Take out the spaces before punctuation and English contractions that joining tokens left."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
