"""XLMRobertaTokenizer over the `tokenizers` library.

Special tokens typed by a user: a literal `</s>` or `<mask>` in a text becomes that special token, as in transformers.
A job that must not let its texts do so removes them before: with `split_special_tokens` they are only looked for later,
among the pieces of the vocabulary, where XLM-R's special tokens are too.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast

import pyarrow as pa
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram

from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.push import Pushed
from xlmr_ray.errors import UserError
from xlmr_ray.stand_in import StandIn
from xlmr_ray.tokenizer.arguments import FOREIGN, kept_aside, warn_unknown
from xlmr_ray.tokenizer.backends import TruncationSettings
from xlmr_ray.tokenizer.batch_encoding import BatchEncoding
from xlmr_ray.tokenizer.call.inputs import as_items, has_pairs
from xlmr_ray.tokenizer.call.outputs import as_columns, without_batch
from xlmr_ray.tokenizer.call.pairs import check_windows, encode_items
from xlmr_ray.tokenizer.call.settings import (
    NO_LIMIT,
    SIDES,
    TRUNCATIONS,
    Side,
    check_length,
    check_multiple,
    check_room,
    cut_to,
    one_of,
)
from xlmr_ray.tokenizer.files import (
    CAMEMBERT,
    SENTENCEPIECE_FILE,
    Settings,
    check_kind,
    stored_settings,
    tokenizer_class,
    tokenizer_folder,
    vocabulary_file,
)
from xlmr_ray.tokenizer.ragged import Ragged, TokenizerError, Truncation, as_strings, encode_ragged
from xlmr_ray.tokenizer.saved import Saved
from xlmr_ray.tokenizer.sentencepiece import Vocabulary, camembert_vocabulary, read_sentencepiece
from xlmr_ray.tokenizer.special_tokens import NAMED, Token, as_added, token_text
from xlmr_ray.tokenizer.vocabulary import (
    PRE_TOKENIZERS,
    PreTokenizer,
    as_symbols,
    as_vocabulary,
    as_xlm_roberta,
    backend_from_file,
    complete,
    lower_first,
    prepends_space,
    unigram_backend,
    with_flags,
)

__all__ = ["BatchEncoding", "Ragged", "TokenizerError", "XLMRobertaTokenizer", "XLMRobertaTokenizerFast"]

log = logging.getLogger(__name__)

Texts = str | Sequence[str] | Sequence[tuple[str, str]] | Sequence[Sequence[str]]


class XLMRobertaTokenizer(StandIn, Pushed, Saved):
    """Texts to XLM-R ids and back.

    Safe to share between threads that encode and decode: the library's tokenizer that this one holds is never changed
    (`add_tokens` replaces it), and each distinct truncation and padding has a clone.
    """

    stands_in_for = ("transformers.tokenization_utils_tokenizers", "TokenizersBackend")
    is_fast = True

    def __init__(
        self,
        vocab: str | Path | Mapping[str, float] | Vocabulary | None = None,
        *,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        bos_token: Token | None = "<s>",
        eos_token: Token | None = "</s>",
        sep_token: Token | None = "</s>",
        cls_token: Token | None = "<s>",
        unk_token: Token | None = "<unk>",
        pad_token: Token | None = "<pad>",
        mask_token: Token | None = "<mask>",
        extra_special_tokens: Sequence[Token] | Mapping[str, Token] = (),
        additional_special_tokens: Sequence[Token] = (),
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        add_prefix_space: bool | None = None,
        pre_tokenizer: PreTokenizer | None = None,
        precompiled_charsmap: bytes | None = None,
        model_max_length: int | None = None,
        padding_side: Side | None = None,
        truncation_side: Side | None = None,
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
    ) -> None:
        """One source of the vocabulary at most; with none, the special tokens are all there is.

        vocab: (piece, score) pairs in the order of their ids, a mapping of pieces to scores in that order, or a path as
        `vocab_file`: a `sentencepiece.bpe.model`, its text of pieces and scores (`.vocab`), or a `tokenizer.json`.
        tokenizer_file: a `tokenizer.json`, taken as it is: it decides how special tokens are matched and, unless
        `add_prefix_space` is given, whether a space is put before a text (elsewhere it is).
        pre_tokenizer: of a `tokenizer.json`: "file" (or None) is its own; with "xlm-roberta" words are what whitespace
        separates, as in transformers' XLMRobertaTokenizer, whatever the file says. Without such a file always so.
        merges_file: accepted as in transformers; a Unigram vocabulary has no merges.
        precompiled_charsmap: the normalizer's character map that goes with `vocab`.
        model_input_names: the columns that a call gives by default; "token_type_ids" may be one.
        """
        one_of("pre_tokenizer", pre_tokenizer or "file", PRE_TOKENIZERS)
        if isinstance(vocab, (str, Path)):
            vocab, vocab_file = None, vocab_file or vocab
        file = vocab_file if tokenizer_file is None else tokenizer_file
        if sum(source is not None for source in (vocab, vocab_file, tokenizer_file)) > 1:
            raise UserError("give one of vocab, vocab_file and tokenizer_file")
        named = (bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token)
        given: dict[str, Token | None] = dict(zip(NAMED, named, strict=True))
        self._special = {name: None if token is None else token_text(token, name) for name, token in given.items()}
        extra = extra_special_tokens or additional_special_tokens
        extra = list(extra.values() if isinstance(extra, Mapping) else extra)
        self.extra_special_tokens = extra
        self.name_or_path = ""
        self.aside = {}
        self.model_max_length = model_max_length or NO_LIMIT
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        self.model_input_names = list(model_input_names)
        self.vocab_file = Path(vocab_file) if vocab_file is not None else None
        # Ids 0 to 3 and the last of XLM-R's vocabulary are special tokens; where one is unset, its usual text.
        usual = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        in_order = {name: self._special[name] or text for name, text in (usual | {"mask_token": "<mask>"}).items()}
        if file is not None:
            backend = backend_from_file(Path(file), in_order, add_prefix_space=add_prefix_space)
        else:
            vocabulary = [(token, 0.0) for token in in_order.values()] if vocab is None else as_vocabulary(vocab)
            prepend = add_prefix_space is not False
            backend = unigram_backend(vocabulary, precompiled_charsmap, add_prefix_space=prepend)
        listed = [token for _, token in sorted((added_tokens_decoder or {}).items())]
        remade = pre_tokenizer == "xlm-roberta" and isinstance(backend.model, Unigram)
        backend = with_flags(backend, listed)
        if remade:
            as_xlm_roberta(backend, add_prefix_space=add_prefix_space is not False)
        self.add_prefix_space = prepends_space(backend)
        # A file may carry the settings of whoever saved it. Which side is kept; cut and pad are decided by each call.
        stored = (truncation_side or (backend.truncation or {}).get("direction", "right")).lower()
        self.truncation_side: Side = one_of("truncation_side", stored, SIDES)
        stored = (padding_side or (backend.padding or {}).get("direction", "right")).lower()
        self.padding_side: Side = one_of("padding_side", stored, SIDES)
        backend.no_truncation()
        backend.no_padding()
        special = [as_added(token) for token in (*given.values(), *extra) if token is not None]
        complete(backend, [*listed, *special], bos=in_order["bos_token"], eos=in_order["eos_token"], template=remade)
        backend.encode_special_tokens = split_special_tokens
        self._warned_long = False
        self._set_backend(backend)

    def __getstate__(self) -> dict[str, Any]:
        made = ("_clones", "_long_text", "_known", "lowercased")
        kept = {name: value for name, value in vars(self).items() if name not in made}
        return kept | {"_backend": self._backend.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        backend = Tokenizer.from_str(state["_backend"])
        backend.encode_special_tokens = self.split_special_tokens
        self._set_backend(backend)

    @cached_property
    def lowercased(self) -> "XLMRobertaTokenizer":
        """A tokenizer of texts in small letters, as sentence-transformers' `do_lower_case` has them: special tokens are
        found before.
        """
        other = XLMRobertaTokenizer.__new__(XLMRobertaTokenizer)
        other.__setstate__(self.__getstate__())
        lower_first(other.backend_tokenizer)
        other._set_backend(other.backend_tokenizer)
        return other

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        **overrides: Any,
    ) -> Self:
        """From a folder, `embedded:NAME`, an object store prefix or a hub id.

        Of `tokenizer.json`, or of `sentencepiece.bpe.model` where there is none. The ids are those of transformers'
        AutoTokenizer: words are what whitespace separates, whatever pre-tokenizer `tokenizer.json` names, unless the
        folder's `tokenizer_class` is PreTrainedTokenizerFast or TokenizersBackend, which take the file as it is;
        `pre_tokenizer="file"` takes any as it is, as other servers do, and "xlm-roberta" none. Special tokens, the
        greatest length and sides come from the files beside it; the constructor's arguments, given here, go before them
        (`Settings`); other ones of transformers' are in FOREIGN, and a name that is in neither is kept in `init_kwargs`
        and warned of, as there.
        Raises UserError when there is no such folder or neither file is in it.
        """
        source = str(pretrained_model_name_or_path)
        folder = resolve(
            pretrained_model_name_or_path,
            revision=revision,
            local_files_only=local_files_only,
            force_download=force_download,
            cache_dir=cache_dir,
            token=token,
            weights=False,
            subfolder=subfolder,
            tokenizer=True,
        )
        file = vocabulary_file(tokenizer_folder(folder), source)
        settings = stored_settings(file.parent)
        if "additional_special_tokens" in overrides:
            del settings["extra_special_tokens"]
        given = FOREIGN.left(overrides)
        unknown = kept_aside("from_pretrained", given, Settings.__annotations__)
        if given.get("pre_tokenizer") is None:
            given.pop("pre_tokenizer", None)  # the folder's
        elif given["pre_tokenizer"] == "file" and file.suffix != ".json":
            raise UserError(f"{source}: pre_tokenizer: got 'file', and there is no tokenizer.json that could say it")
        settings.update(cast("Settings", {name: value for name, value in given.items() if name not in unknown}))
        if file.suffix == ".json":
            tokenizer = cls(tokenizer_file=file, **settings)
            if not isinstance(tokenizer.backend_tokenizer.model, Unigram):
                kind = type(tokenizer.backend_tokenizer.model).__name__
                check_kind(file.parent, str(source), f"{file.name} with a {kind} vocabulary")
        elif tokenizer_class(file.parent) == CAMEMBERT:
            model = read_sentencepiece(file)
            own = {
                name: token_text(settings[name], name)
                for name in ("pad_token", "unk_token", "mask_token")
                if settings.get(name)
            }
            tokenizer = cls(camembert_vocabulary(model.pieces, **own), precompiled_charsmap=model.charsmap, **settings)
            tokenizer.add_tokens(as_symbols(model.symbols))
        else:
            tokenizer = cls(vocab_file=file, **settings)
        tokenizer.name_or_path = source
        tokenizer.aside = unknown
        if (file.parent / SENTENCEPIECE_FILE).is_file():
            tokenizer.vocab_file = file.parent / SENTENCEPIECE_FILE
        return tokenizer

    # Encoding

    def __call__(
        self,
        text: Texts | None = None,
        text_pair: Texts | None = None,
        text_target: Texts | None = None,
        text_pair_target: Texts | None = None,
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
        *,
        max_target_length: int | None = None,
        split_special_tokens: bool | None = None,
        **unknown: Any,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or lists of either, as transformers does.

        padding: False, True or "longest", "max_length". truncation: False, True or "longest_first", "only_first",
        "only_second"; without `max_length` both go by `model_max_length`; `max_length` without `truncation` truncates.
        With `is_split_into_words`, a text is a list of words. With `return_overflowing_tokens`, a text gives one
        sequence a window, `stride` tokens shared, and `overflow_to_sample_mapping` tells whose it is.
        The ids of `text_target` become `labels`; without `text` they are the inputs. Unknown keywords are warned of.
        Raises TokenizerError with the index of the text that cannot be encoded.
        """
        warn_unknown("a call of the tokenizer", unknown)

        def encoded(text: Any, text_pair: Any, max_length: int | None) -> BatchEncoding:
            items, batched = as_items(text, text_pair, words=is_split_into_words)
            pairs = has_pairs(items, words=is_split_into_words)
            added = self.num_special_tokens_to_add(pairs) if add_special_tokens else 0
            check_length("max_length", max_length, 0)
            limit = self.model_max_length if max_length is None else max_length
            # A length by itself asks for truncation, unless it is for padding.
            how = True if max_length is not None and padding is False and truncation is None else truncation
            cut = cut_to(how, limit, stride, one_of("truncation_side", self.truncation_side, SIDES), added)
            if cut and not return_overflowing_tokens:
                cut = replace(cut, stride=0)  # it only moves the windows that nobody asked for, yet may make one fail
            to_pad = self._pad_to(padding, max_length, pad_to_multiple_of, padding_side)
            if cut and to_pad:
                check_multiple(limit, pad_to_multiple_of)
            if verbose and padding in (True, "longest") and max_length is not None and cut is None:
                log.warning("max_length=%d does nothing: pass truncation=True or padding='max_length'", max_length)
            split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
            encodings = encode_items(
                self._clones,
                items,
                cut,
                to_pad,
                added=added,
                special=add_special_tokens,
                split_special=split,
                words=is_split_into_words,
                overflow=return_overflowing_tokens,
            )
            each = [[one, *one.overflowing] if return_overflowing_tokens else [one] for one in encodings]
            rows = [row for several in each for row in several]
            if verbose and max_length is None and cut is None:
                self._warn_long(max((len(row) for row in rows), default=0))
            data = as_columns(
                each,
                token_type_ids=self._asked("token_type_ids", return_token_type_ids),
                attention_mask=self._asked("attention_mask", return_attention_mask),
                special_tokens_mask=return_special_tokens_mask,
                offsets_mapping=return_offsets_mapping,
                length=return_length,
                overflow_mapping=return_overflowing_tokens,
            )
            if not batched and return_tensors is None and not return_overflowing_tokens:
                data = without_batch(data)
            return BatchEncoding(data, rows, tensor_type=return_tensors)

        if text_target is None:
            return encoded(text, text_pair, max_length)
        targets = encoded(text_target, text_pair_target, max_length if max_target_length is None else max_target_length)
        if text is None:
            return targets
        inputs = encoded(text, text_pair, max_length)
        inputs["labels"] = targets["input_ids"]
        return inputs

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
        if seconds is not None:
            self.check_pairs()
        windows = None
        if truncation != "do_not_truncate":
            added = self.num_special_tokens_to_add(seconds is not None)
            check_room(max_length, stride, added)
            if overflow:
                cut = TruncationSettings(max_length, truncation, stride, self.truncation_side)
                if seconds is not None:
                    check_windows(self._backend, list(zip(strings, seconds, strict=True)), cut, added)
                windows = self._clones.get(cut, None, split_special=self.split_special_tokens)
        return encode_ragged(
            self._clones.get(None, None, split_special=self.split_special_tokens),
            windows,
            self._pair if seconds is not None else self._single,
            self._long_text,
            self._known if self._known.usable else None,
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
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: Side | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
        *,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_overflowing_tokens: bool = False,
        split_special_tokens: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """The ids of one text or pair: a list, or with `return_tensors` a tensor or array of shape (1, length)."""
        warn_unknown("encode", unknown)
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            is_split_into_words=is_split_into_words,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_overflowing_tokens=return_overflowing_tokens,
            split_special_tokens=split_special_tokens,
        )["input_ids"]

    def tokenize(
        self,
        text: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        add_special_tokens: bool = False,
        *,
        is_split_into_words: bool = False,
        split_special_tokens: bool | None = None,
        **unknown: Any,
    ) -> list[str]:
        """The pieces of a text, as strings."""
        warn_unknown("tokenize", unknown)
        return self(
            text,
            pair,
            add_special_tokens=add_special_tokens,
            is_split_into_words=is_split_into_words,
            split_special_tokens=split_special_tokens,
            verbose=False,
        ).tokens()

    def _warn_long(self, length: int) -> None:
        if length > self.model_max_length and not self._warned_long:
            self._warned_long = True
            log.warning(
                "a text has %d tokens and the model takes %d: pass truncation=True", length, self.model_max_length
            )

    def __repr__(self) -> str:
        return f"XLMRobertaTokenizer({len(self)} tokens, model_max_length={self.model_max_length})"


XLMRobertaTokenizerFast = XLMRobertaTokenizer
