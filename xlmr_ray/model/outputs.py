"""Outputs by transformers' names: dataclasses that also unpack and index as the tuple of what is there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, overload

from torch import Tensor

from xlmr_ray.model.generation.cache import DynamicCache

States = tuple[Tensor, ...] | None


class OnRead:
    """A field that holds a tensor, or the function that makes it: it is called once, when the field is first read.

    Logits over 250,002 entries take more memory than the rest of a training step, and beside a loss few read them.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, output: None, owner: type) -> None: ...

    @overload
    def __get__(self, output: object, owner: type) -> Tensor | None: ...

    def __get__(self, output: object | None, owner: type) -> Tensor | None:
        if output is None:
            return None  # read off the class: the field's default
        value: Tensor | Callable[[], Tensor] | None = vars(output)[self.name]
        if value is not None and not isinstance(value, Tensor):
            value = value()
            vars(output)[self.name] = value
        return value

    def __set__(self, output: object, value: Tensor | Callable[[], Tensor] | None) -> None:
        vars(output)[self.name] = value


@dataclass
class ModelOutput:
    """Fields that are None are left out of the tuple view, as in transformers."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if vars(self)[f.name] is not None]

    def values(self) -> list[Any]:
        return list(self.to_tuple())

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default

    def __getitem__(self, key: int | slice | str) -> Any:
        names = self.keys()
        if isinstance(key, slice):
            return tuple(getattr(self, name) for name in names[key])
        if isinstance(key, str) and key not in names:
            raise KeyError(key)
        return getattr(self, key if isinstance(key, str) else names[key])

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    # The order of the tuple that transformers returns, which is not that of its class.
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: DynamicCache | None = None
    hidden_states: States = None
    attentions: States = None
    cross_attentions: States = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    loss: Tensor | None = None
    logits: OnRead = OnRead()
    past_key_values: DynamicCache | None = None
    hidden_states: States = None
    attentions: States = None
    cross_attentions: States = None


@dataclass
class MaskedLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: OnRead = OnRead()
    hidden_states: States = None
    attentions: States = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None
