"""What padding and truncation a call asks for, in transformers' words."""

from typing import Any, Literal, TypeVar

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.backends import Pad, TruncationSettings

Side = Literal["right", "left"]
_Choice = TypeVar("_Choice", bound=str)

NO_LIMIT = int(1e30)  # transformers' length for a tokenizer that names none
_LIMITS = int(1e20)  # above, a length counts as none
SIDES: tuple[Side, ...] = ("right", "left")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = ("longest", "max_length", "do_not_pad")


def cut_to(truncation: bool | str | None, limit: int, stride: int, side: Side, added: int) -> TruncationSettings | None:
    """The truncation asked for, None for none. Without a limit nothing is cut. `added`: a sequence's special tokens."""
    check_length("stride", stride, 0)
    how = ("longest_first" if truncation else "do_not_truncate") if isinstance(truncation, bool) else truncation
    how = one_of("truncation", "do_not_truncate" if how is None else how, TRUNCATIONS, also="True or False")
    if how == "do_not_truncate" or limit > _LIMITS:
        return None
    check_room(limit, stride, added)
    return TruncationSettings(limit, how, stride, side)


def pad_to(
    padding: bool | str, limit: int, multiple: int | None, side: Side, pad_token: str | None, pad_id: int
) -> Pad | None:
    """The padding asked for, None for none. "max_length" without a limit pads nothing."""
    check_length("pad_to_multiple_of", multiple, 1)
    how = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
    how = one_of("padding", how, PADDINGS, also="True or False")
    if how == "do_not_pad" or (how == "max_length" and limit > _LIMITS):
        return None
    if pad_token is None:
        raise UserError("padding: this tokenizer has no pad_token; set one: tokenizer.pad_token = '<pad>'")
    return Pad(limit if how == "max_length" else None, pad_id, pad_token, side, multiple)


def check_room(max_length: int, stride: int, added: int) -> None:
    """The library panics where a stride leaves a window no way forward; say it before. `added`: special tokens."""
    room = max_length - added
    if room < 0:
        raise UserError(f"max_length={max_length} has no room for {added} special tokens")
    if stride < 0 or (stride and stride >= room):
        raise UserError(f"stride={stride}: expected 0 to {max(room - 1, 0)}, less than the tokens of a window")


def check_multiple(length: int, multiple: int | None) -> None:
    if multiple is not None and length % multiple:
        raise UserError(f"max_length={length} is not a multiple of pad_to_multiple_of={multiple}")


def one_of(name: str, value: Any, choices: tuple[_Choice, ...], also: str = "") -> _Choice:
    """The choice that `value` names: itself, or a member of a string enumeration such as transformers'."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise UserError(f"{name}={value!r}: expected one of {', '.join(choices)}" + (f", or {also}" if also else ""))


def check_length(name: str, value: Any, least: int) -> None:
    """Raise UserError where a length is neither None nor an integer of at least `least`."""
    integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if value is not None and (not integer or value < least):
        raise UserError(f"{name}={value!r}: expected an integer, {least} or more")
