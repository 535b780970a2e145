"""Outputs by transformers' names: ordered mappings that also index as a tuple and have their entries as attributes."""

from collections import OrderedDict
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.utils._pytree import GetAttrKey, register_pytree_node

from xlmr_ray.model.generation.cache import DynamicCache

States = tuple[Tensor, ...] | None


class OutputField:
    """A field of an output: the entry of that name, None where there is none.

    A function may be set in place of a tensor: it is called once, when the entry is first read. Logits over 250,002
    entries take more memory than the rest of a training step, and beside a loss few read them.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, output: "ModelOutput | None", owner: type) -> Any:
        # Read off the class: the field's default.
        return None if output is None else output.get(self.name)

    def __set__(self, output: "ModelOutput", value: Any) -> None:
        if value is not None:
            output[self.name] = value
        elif self.name in output:
            del output[self.name]


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers, an ordered mapping without the fields that are None; integers and slices index its values.
    Torch takes it apart and makes it anew (`torch.export`, `DataParallel`), from pairs or a mapping as first argument.
    """

    def __init_subclass__(cls) -> None:
        for name in cls.__annotations__:
            setattr(cls, name, OutputField(name))
        register_pytree_node(
            cls,
            lambda output: ([*output.values()], [*output]),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda output: ([(GetAttrKey(k), v) for k, v in output.items()], [*output]),
        )

    def __post_init__(self) -> None:
        first = next(iter(self), None)
        if len(self) == 1 and first is not None and isinstance(self[first], Mapping | Iterator):
            given = dict(self[first])
            self.clear()
            for name, value in given.items():
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self[name] for name in self)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return tuple(self[name] for name in list(self)[key])
        if not isinstance(key, str):
            key = list(self)[key]
        value = super().__getitem__(key)
        if isinstance(value, FunctionType):
            value = value()
            self[key] = value
        return value

    def __getattr__(self, name: str) -> Any:
        """Of names that are no field."""
        if name in self:
            return self[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    # The dictionary's own would hand out a function that has not been called.

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 - the dictionary's own would hand out the function

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return ItemsView(self)

    def __reduce__(self) -> Any:
        return type(self), (dict(self.items()),)


@dataclass(eq=False, repr=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    # The order of the tuple that transformers returns, which is not that of its class.
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: DynamicCache | None = None
    hidden_states: States = None
    attentions: States = None
    cross_attentions: States = None


@dataclass(eq=False, repr=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: DynamicCache | None = None
    hidden_states: States = None
    attentions: States = None
    cross_attentions: States = None


@dataclass(eq=False, repr=False)
class MaskedLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass(eq=False, repr=False)
class SequenceClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass(eq=False, repr=False)
class MultipleChoiceModelOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass(eq=False, repr=False)
class TokenClassifierOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None


@dataclass(eq=False, repr=False)
class QuestionAnsweringModelOutput(ModelOutput):
    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: States = None
    attentions: States = None
