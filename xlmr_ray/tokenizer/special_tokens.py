"""The seven named special tokens as attributes of a tokenizer: `pad_token`, `pad_token_id` and so on."""

from typing import Any, Protocol, Self, cast, overload

from tokenizers import AddedToken

from xlmr_ray.errors import UserError

Token = str | AddedToken
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Owner(Protocol):
    _special: dict[str, str | None]

    def convert_tokens_to_ids(self, tokens: str) -> Any: ...
    def convert_ids_to_tokens(self, ids: int) -> Any: ...


class NamedToken:
    """A special token as text. It may be set, also to one that the vocabulary lacks (its id is then the unknown one).

    Typed `str`: None only where the user, or the checkpoint's configuration, unset it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, tokenizer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, tokenizer: _Owner, owner: type) -> str: ...
    def __get__(self, tokenizer: _Owner | None, owner: type) -> Self | str:
        return self if tokenizer is None else cast("str", tokenizer._special[self.name])

    def __set__(self, tokenizer: _Owner, token: Token | None) -> None:
        tokenizer._special[self.name] = None if token is None else token_text(token, self.name)


class NamedTokenId:
    """The id of the special token of the same name; setting it names another token. None where the token is unset."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    @overload
    def __get__(self, tokenizer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, tokenizer: _Owner, owner: type) -> int: ...
    def __get__(self, tokenizer: _Owner | None, owner: type) -> Self | int:
        if tokenizer is None:
            return self
        token = tokenizer._special[self.name]
        return cast("int", None if token is None else tokenizer.convert_tokens_to_ids(token))

    def __set__(self, tokenizer: _Owner, token_id: int | None) -> None:
        token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
        if token is None and token_id is not None:
            raise UserError(f"{self.name}_id={token_id}: the vocabulary has no such id")
        tokenizer._special[self.name] = token


def token_text(token: Any, name: str) -> str:
    if not isinstance(token, (str, AddedToken)):
        raise UserError(f"{name}: expected a str or an AddedToken, got {type(token).__name__}")
    text = content(token)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"{name}: {text!a} holds a lone surrogate, which no text may")
    return text


def as_added(token: Token) -> AddedToken:
    """A special token: as it is where the caller said how it is matched, else matched before normalization."""
    return AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token


def content(token: Token | dict[str, Any]) -> str:
    if isinstance(token, str):
        return token
    return str(token["content"] if isinstance(token, dict) else token.content)


def stored_token(token: Any) -> Any:
    """A special token as the configuration files hold it: a string, or an object that says how it is matched."""
    if not isinstance(token, dict):
        return token
    how = {name: token[name] for name in ("single_word", "lstrip", "rstrip") if name in token}
    return AddedToken(token["content"], normalized=token.get("normalized", False), special=True, **how)
