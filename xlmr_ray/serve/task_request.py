"""What a request asks of a task, whatever protocol it came by: made once by a protocol, and handed on as one thing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cutting:
    """What becomes of a text that is longer than the model: refused where it has to stay `whole`, else cut at the end
    that `side` says, `left` or `right`, the tokenizer's own if None. `hint`: how the caller's protocol asks for it to
    be cut, for the message that refuses it.
    """

    whole: bool = False
    side: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class TaskRequest:
    """D documents for a task. `columns` are their texts by the task's roles, each of length D (`choices`: lists of
    texts). `options` are the task's own, over those of the settings. `model` is its name; if None, the first one that
    has the task.

    For messages: `fields` are what the caller's protocol calls roles and options, where that is not their name; those
    that hold one text and no list are in `once`, and have no index after their name.
    """

    task: str
    columns: Mapping[str, Sequence[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    once: Sequence[str] = ()
    cutting: Cutting = Cutting()

    def field(self, name: str) -> str:
        """What the caller's protocol calls a role or an option."""
        return self.fields.get(name, name)
