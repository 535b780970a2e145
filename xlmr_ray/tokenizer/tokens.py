"""What a tokenizer does with tokens: pieces and ids, special tokens, padding, and ids back to text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.arguments import warn_unknown
from xlmr_ray.tokenizer.backends import Clones, Pad, with_tokens
from xlmr_ray.tokenizer.batch_encoding import BatchEncoding
from xlmr_ray.tokenizer.call.padding import pad
from xlmr_ray.tokenizer.call.settings import SIDES, Side, check_length, one_of, pad_to
from xlmr_ray.tokenizer.decode import TokenIds, as_ids, clean_up_tokenization, decode
from xlmr_ray.tokenizer.known_words import KnownWords
from xlmr_ray.tokenizer.ragged import Template
from xlmr_ray.tokenizer.safe_prefix import LongText
from xlmr_ray.tokenizer.special_tokens import NAMED, NamedToken, NamedTokenId, Token, as_added, token_text


class Tokens:
    """The half of `XLMRobertaTokenizer` that needs no text."""

    bos_token, bos_token_id = NamedToken(), NamedTokenId()
    eos_token, eos_token_id = NamedToken(), NamedTokenId()
    unk_token, unk_token_id = NamedToken(), NamedTokenId()
    sep_token, sep_token_id = NamedToken(), NamedTokenId()
    pad_token, pad_token_id = NamedToken(), NamedTokenId()
    cls_token, cls_token_id = NamedToken(), NamedTokenId()
    mask_token, mask_token_id = NamedToken(), NamedTokenId()
    pad_token_type_id = 0

    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    model_max_length: int
    padding_side: Side
    truncation_side: Side
    model_input_names: list[str]
    _extra: list[str]
    _special: dict[str, str | None]

    def _set_backend(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._single = Template.of(backend, pair=False)
        self._pair = Template.of(backend, pair=True)
        self._long_text = LongText(backend)
        self._known = KnownWords(backend)
        self._clones = Clones(backend)

    # Ids back to text

    def decode(
        self,
        token_ids: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """The text of a sequence of ids; a list of texts for a batch. Lists, arrays and tensors alike.

        As in transformers, ids beyond the vocabulary give nothing. Raises UserError for what is no id.
        """
        warn_unknown("decode", unknown)
        clean = clean_up_tokenization_spaces
        clean = self.clean_up_tokenization_spaces if clean is None else clean
        ids = as_ids(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [decode(self._backend, one, skip_special_tokens=skip_special_tokens, clean_up=clean) for one in ids]
        return decode(self._backend, ids, skip_special_tokens=skip_special_tokens, clean_up=clean)

    def batch_decode(
        self,
        sequences: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unknown: Any,
    ) -> list[str]:
        """As `decode`, always a list."""
        warn_unknown("batch_decode", unknown)
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Take out the spaces before punctuation and English contractions that joining tokens left."""
        return clean_up_tokenization(text)

    # Pieces and ids

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a piece, or a list of ids; the unknown token's for a piece that is not in the vocabulary."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token_text(token, "tokens")) for token in tokens]
        token = self._backend.token_to_id(token_text(tokens, "tokens"))
        if token is None and (unknown := self._special["unk_token"]) is not None:
            token = self._backend.token_to_id(unknown)
            if token is None:
                raise UserError(f"the unknown token {unknown!r} is not in the vocabulary")
        return token

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> Any:
        """The piece of an id, or a list of pieces; None for an id beyond the vocabulary."""
        listed = as_ids(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        try:
            if isinstance(listed, int):
                return self._backend.id_to_token(listed)
            return [self._backend.id_to_token(int(token)) for token in listed if int(token) not in skipped]
        except (OverflowError, TypeError, ValueError):
            raise UserError(f"expected ids, integers from 0 on, got {str(ids)[:80]}") from None

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        decoder = self._backend.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    # Special tokens

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set, by name."""
        return {name: token for name in NAMED if (token := self._special[name]) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def extra_special_tokens(self) -> list[str]:
        """A copy: what is added to it is not added to the tokenizer (`add_special_tokens` does)."""
        return list(self._extra)

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[Token]) -> None:
        self._extra = [token_text(token, "extra_special_tokens") for token in tokens]

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.extra_special_tokens]

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

    def check_pairs(self) -> None:
        """Raises UserError where pairs have tokens of another type than 0: `encode_ragged` gives no types, and the
        engine computes none.
        """
        if self._pair.typed:
            raise UserError(
                "pairs: tokenizer.json gives tokens of the second text another type than 0, which is not computed; "
                "XLM-R's own template has no types"
            )

    # Padding

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: Side | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Literal["pt", "np"] | None = None,
    ) -> BatchEncoding:
        """Pad sequences already encoded: one, a dictionary of lists, or a list of dictionaries (a collate function).

        `labels` and other columns are left as they are.
        """
        check_length("max_length", max_length, 0)
        to_pad = self._pad_to(padding, max_length, pad_to_multiple_of, padding_side)
        return pad(
            encoded_inputs,
            fill={"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1},
            padding=to_pad is not None,
            length=to_pad.length if to_pad else None,
            multiple=pad_to_multiple_of,
            left=to_pad is not None and to_pad.direction == "left",
            attention_mask=self._asked("attention_mask", return_attention_mask),
            tensors=return_tensors,
        )

    def _pad_to(
        self, padding: bool | str, max_length: int | None, multiple: int | None, side: Side | None
    ) -> Pad | None:
        limit = self.model_max_length if max_length is None else max_length
        side = one_of("padding_side", side or self.padding_side, SIDES)
        return pad_to(padding, limit, multiple, side, self._special["pad_token"], self.pad_token_id)

    def _asked(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    # Adding tokens

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens that a text is never split within; how many were taken. New ids follow the vocabulary's last, so
        the model's embeddings must grow to `len(tokenizer)`. Not to be called while other threads encode.
        """
        several = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        for token in several:
            token_text(token, "add_tokens")
        if not several:
            return 0
        backend, added = with_tokens(self._backend, several, special=special_tokens)
        self._set_backend(backend)
        return added

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Name special tokens (`{"pad_token": "[PAD]", "extra_special_tokens": [...]}`) and add those that are new; how
        many were taken. The extra tokens replace those before, which stay in the vocabulary, or come after them.
        """
        names = {"additional_special_tokens": "extra_special_tokens"}
        given_as = {names.get(name, name): token for name, token in special_tokens_dict.items()}
        asked: dict[str, list[Token]] = {}
        to_add: list[AddedToken] = []
        for name, given in given_as.items():
            if name not in (*NAMED, "extra_special_tokens"):
                raise UserError(f"{name}: no special token's name; they are {', '.join(NAMED)}, extra_special_tokens")
            if (name == "extra_special_tokens") != isinstance(given, (list, tuple)):
                raise UserError(f"{name}: expected {'a list' if name not in NAMED else 'a token'}, got {given!r}")
            several: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
            asked[name] = several
            if not replace_extra_special_tokens and name not in NAMED:
                several = [token for token in several if token_text(token, name) not in self.extra_special_tokens]
            to_add += [as_added(token) for token in several if token_text(token, name)]
        added = self.add_tokens(to_add, special_tokens=True)
        for name, several in asked.items():
            if name in NAMED:
                setattr(self, name, several[0])
                continue
            kept = [] if replace_extra_special_tokens and several else self.extra_special_tokens
            new = [token_text(token, name) for token in several]
            self.extra_special_tokens = [*kept, *(token for token in new if token not in kept)]
        return added

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that a text is never split within, special ones first of all, by id."""
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return {token.content: place for place, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        return self.added_tokens_encoder

    # The vocabulary

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
    def decoder(self) -> Any:
        return self._backend.decoder

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of one text that fit beside the special tokens."""
        return self.model_max_length - self._single.added

    @property
    def max_len_sentences_pair(self) -> int:
        return self.model_max_length - self._pair.added

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that could change the ids: part of a run's identity."""
        known = json.dumps([self.special_tokens_map, self.truncation_side, self.split_special_tokens], sort_keys=True)
        return hashlib.sha256((self._backend.to_str() + known).encode()).hexdigest()[:16]
