"""A tokenizer's folder, and another tokenizer made like it."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.arguments import FOREIGN_SAVING
from xlmr_ray.tokenizer.files import save_sentencepiece, save_tokenizer
from xlmr_ray.tokenizer.special_tokens import Token
from xlmr_ray.tokenizer.tokens import Tokens
from xlmr_ray.tokenizer.train import trained
from xlmr_ray.tokenizer.vocabulary import is_xlm_roberta


class Saved(Tokens):
    """The part of `XLMRobertaTokenizer` that writes what `from_pretrained` reads."""

    add_prefix_space: bool
    vocab_file: Path | None
    # What `from_pretrained` was given and has no use for.
    aside: dict[str, Any]
    push_to_hub: Any

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """The arguments that make a tokenizer like this one of its vocabulary, by their names in the files."""
        return {
            **self.aside,
            **self._special,
            "extra_special_tokens": self.extra_special_tokens,
            "add_prefix_space": self.add_prefix_space,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "split_special_tokens": self.split_special_tokens,
            "model_input_names": self.model_input_names,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
        }

    def save_pretrained(
        self,
        save_directory: str | Path,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **others: Any,
    ) -> tuple[str, ...]:
        """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, which transformers loads with
        equal ids; with `push_to_hub` to the hub, too, with that method's arguments. There is no `legacy_format`.
        """
        FOREIGN_SAVING.left({"legacy_format": legacy_format})
        others = FOREIGN_SAVING.left(others)
        if others and not push_to_hub:
            raise UserError(f"save_pretrained: no argument {', '.join(others)}")
        # transformers makes XLM-R's tokenizer of the vocabulary anew; what that would change is read as it is.
        kind = "XLMRobertaTokenizer" if is_xlm_roberta(self._backend) else "PreTrainedTokenizerFast"
        config = {"tokenizer_class": kind, **self.init_kwargs}
        paths = save_tokenizer(self._backend, Path(save_directory), config, filename_prefix)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": Path(save_directory).name, **others})
        return paths

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[Sequence[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
    ) -> Self:
        """A tokenizer like this one with a vocabulary of so many entries learned from texts, or lists of texts, of
        which there are `length`. `special_tokens_map` renames special tokens. Raises UserError.
        """
        new, renamed = list(new_special_tokens or ()), dict(special_tokens_map or {})
        backend = trained(self._backend, text_iterator, vocab_size, length, new, renamed)
        special = {name: renamed.get(token or "", token) for name, token in self._special.items()}
        given = {**self.init_kwargs, **special, "extra_special_tokens": [*self.extra_special_tokens, *new]}
        with tempfile.TemporaryDirectory() as folder:
            backend.save(str(file := Path(folder) / "tokenizer.json"))
            make: Any = type(self)
            made: Self = make(
                tokenizer_file=file,
                **{name: value for name, value in given.items() if name not in {*self.aside, "add_prefix_space"}},
            )
        return made

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str]:
        """Write `sentencepiece.bpe.model`: a copy of the file that this came with, or one made of the vocabulary.

        Tokens that were added are not in it. Raises UserError for a vocabulary that is not in XLM-R's order.
        """
        names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
        special = [str(self._special[name]) for name in names]
        return (save_sentencepiece(self._backend, self.vocab_file, Path(save_directory), filename_prefix, special),)
