"""What a request may ask for: which options, how many texts, how much they become. What is too much is refused before
the engine sees it, and before it takes memory.
"""

import json
from typing import Any

import pyarrow as pa

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.token_range import out_of_range
from xlmr_ray.serve.json_body import check_text
from xlmr_ray.serve.requests import Empty, Invalid, TooLarge
from xlmr_ray.serve.settings import LimitsSection
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.tasks.encoded import documents, lengths, ragged
from xlmr_ray.tasks.task import Task
from xlmr_ray.text.json_type import json_type

# Characters of texts that a task turns into many times their tokens.
EXPANDED = 32_768


def check_options(task: Task, request: TaskRequest, limits: LimitsSection) -> None:
    """Raises Invalid or TooLarge for options that a request may not set, or that would take more memory or time than
    it may.
    """
    for name in task.fixed_options:
        if name in request.options:
            raise Invalid(request.field(name), "is set in the service's settings, not by a request")
    for name, bound in task.request_bounds.items():
        most = getattr(limits, bound) if isinstance(bound, str) else bound
        value, field = request.options.get(name), request.field(name)
        if isinstance(value, int | float) and value > most:
            raise Invalid(field, f"at most {most} here")
        if isinstance(value, list | tuple) and len(value) > most:
            too_long = f"a list of {len(value)}, at most {most} are allowed"
            raise TooLarge(too_long, field=field) if isinstance(bound, str) else Invalid(field, too_long)


def check_columns(task: Task, request: TaskRequest, limits: LimitsSection) -> pa.Table:
    """The texts of D documents as a table with a string column a role; lists of texts are carried as JSON. Raises
    Empty, Invalid or TooLarge.
    """
    columns = request.columns
    names = {role: request.field(role) for role in (*task.roles, *columns)}
    for role in columns:
        if role not in task.roles:
            raise Invalid(names[role], f"this task reads {', '.join(names[own] for own in task.roles)} only")
    for role in task.roles:
        if role not in columns:
            raise Invalid(names[role], "is missing")
    counts = {role: len(values) for role, values in columns.items()}
    first, *rest = task.roles
    for role in rest:
        if counts[role] != counts[first]:
            raise Invalid(names[role], f"{counts[role]} texts for the {counts[first]} of {names[first]}")
    if not counts[first]:
        raise Empty("no texts are given", field=names[first])
    table = {}
    for role in task.roles:
        several = role in task.list_roles
        if role in task.span_roles:
            table[role] = pa.array([spans_as_json(one, f"{names[role]}.{i}") for i, one in enumerate(columns[role])])
            continue
        texts = [
            checked_text(one, f"{names[role]}.{i}", limits, several=several) for i, one in enumerate(columns[role])
        ]
        table[role] = pa.array(texts, pa.string())
    if (sequences := task.sequences(columns)) > limits.sequences:
        raise TooLarge(f"{sequences} sequences to compute, at most {limits.sequences} are allowed")
    characters = sum(len(text) for text in columns[first] if isinstance(text, str))
    if task.expands and characters > EXPANDED:
        raise TooLarge(f"{characters} characters, at most {EXPANDED} are allowed for this task with these options")
    return pa.table(table)


def spans_as_json(value: Any, field: str) -> str:
    """A document's list of [start, end] as JSON."""
    lists = isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in value)
    if not lists or not all(type(number) is int for one in value for number in one):
        raise Invalid(field, "expected a list of [start, end], whole numbers")
    return json.dumps(value)


def checked_text(value: Any, field: str, limits: LimitsSection, *, several: bool) -> str:
    """A document's text of a role as tasks read it, or its list of `several` texts as JSON."""
    if several:
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise Invalid(field, "expected a list of texts")
        if not value:
            raise Empty("no texts are given", field=field)
        for index, one in enumerate(value):
            check_text(one, f"{field}.{index}")
        return json.dumps(list(value), ensure_ascii=False)
    if not isinstance(value, str):
        raise Invalid(field, f"expected a text, got {json_type(value)}")
    if not value and limits.empty == "error":
        raise Empty("the text is empty", field=field)
    check_text(value, field)
    return value


def check_overlap(task: Task, request: TaskRequest, config: XLMRobertaConfig) -> None:
    """Raises Invalid for windows that share more than half of their tokens: they turn one text into thousands of its
    length.
    """
    stride = getattr(task, task.stride_option, None)
    length = getattr(task, task.length_option, None) or config.max_length
    if isinstance(stride, int) and stride > length // 2:
        raise Invalid(
            request.field(task.stride_option), f"at most half of a window's {length} tokens here, got {stride}"
        )


def check_encoded(task: Task, encoded: pa.Table, limits: LimitsSection, config: XLMRobertaConfig, field: str) -> None:
    """Raises TooLarge for more sequences or results than a request may have, Empty for a text without tokens, Invalid
    for one with a token that the model does not have.
    """
    if encoded.num_rows > limits.sequences:
        raise TooLarge(f"{encoded.num_rows} sequences to compute, at most {limits.sequences} are allowed", field=field)
    tokens = lengths(encoded)
    if tokens.min(initial=1) == 0:
        raise Empty(f"text {int(tokens.argmin())} has no tokens", field=field)
    if (longest := int(tokens.max(initial=0))) > (most := task.longest_sequence(config)):
        raise TooLarge(f"a sequence of {longest} tokens, the model has positions for {most}", field=field)
    for sequence, (_, message) in out_of_range(*ragged(encoded["input_ids"]), config.vocab_size).items():
        raise Invalid(f"{field}.{int(documents(encoded)[sequence])}", message)
    if (results := task.results(encoded)) > limits.results:
        raise TooLarge(
            f"{results} numbers as the result, at most {limits.results} are allowed; send fewer texts or ask for less",
            field=field,
        )


def check_whole(encoded: pa.Table, field: str, max_length: int, hint: str | None) -> None:
    """Raises TooLarge for the first text that does not fit: what may be sent again, shorter or with the `hint`, an
    option of the caller's protocol that has it cut.
    """
    cut = encoded["truncated"].to_numpy()
    if cut.any():
        first = int(documents(encoded)[cut.argmax()])
        how = f"; with {hint} it is cut" if hint else ""
        raise TooLarge(f"more than the {max_length} tokens that the model takes{how}", field=f"{field}.{first}")
