"""Texts as transformers' call takes them -> what the library takes."""

from typing import Any

from xlmr_ray.errors import UserError


def as_items(text: Any, text_pair: Any, *, words: bool) -> tuple[list[Any], bool]:
    """(items, batched): each item a text or a tuple of two; `batched` tells a list of texts from a single text.

    With `words` a text is a list of words. Without `text_pair`, an item of a batch may be a pair itself. Which item is
    of the wrong type is an error later, by its index.
    """
    if text is None:
        raise UserError("got text=None, expected a text or a list of texts")
    a_list = isinstance(text, (list, tuple))
    if words and not a_list:
        raise UserError(f"is_split_into_words=True: expected a list of words, got {type(text).__name__}")
    if not a_list and not isinstance(text, str):
        raise UserError(f"text: expected a str or a list of str, got {type(text).__name__}")
    if not a_list or (words and not (text and isinstance(text[0], (list, tuple)))):
        if text_pair is not None and not isinstance(text_pair, (list, tuple) if words else str):
            wanted = "a list of words" if words else "a str"
            raise UserError(f"text_pair: expected {wanted}, as text is, got {type(text_pair).__name__}")
        # The reference takes an empty second text for none, when it is not in a list.
        return [(text, text_pair)] if text_pair else [text], False
    if text_pair is None:
        return list(text), True
    if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
        got = len(text_pair) if isinstance(text_pair, (list, tuple)) else f"one {type(text_pair).__name__} as"
        raise UserError(f"got {len(text)} texts and {got} text_pair: expected a list of as many")
    return list(zip(text, text_pair, strict=True)), True


def has_pairs(items: list[Any], *, words: bool) -> bool:
    """Whether some item is a pair, and so gets the special tokens of one."""
    if words:
        return any(bool(item) and isinstance(item[0], (list, tuple)) for item in items if isinstance(item, tuple))
    return any(isinstance(item, (list, tuple)) for item in items)
