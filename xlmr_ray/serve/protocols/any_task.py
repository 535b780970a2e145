"""`/tasks/<task>` for any task: texts by role, options by name, and what `pipeline()` answers."""

from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, create_model

from xlmr_ray.serve.protocols.body import Asked, Model, Parameters, Several
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.reply import ask, in_parameters, reply
from xlmr_ray.serve.protocols.responses import PlainError
from xlmr_ray.serve.requests import Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.tasks.task import Task, option_fields

Document = str | dict[str, str | Several[str] | Several[list[int]]]


def add_route(routes: APIRouter, service: Service, name: str, task: type[Task], *, show: bool) -> None:
    """The route of a task."""
    summary = f"What pipeline({name!r}) answers"
    kind = body_of(task)

    @routes.post(f"/tasks/{name}", **documented(f"POST /tasks/{name}", Any, PlainError, summary=summary, show=show))
    async def answer(body: kind, model: Model = None) -> Response:  # type: ignore[valid-type]
        given, parameters = body.inputs, body.parameters  # type: ignore[attr-defined]
        model = body.which(model)  # type: ignore[attr-defined]
        bound = service.find(name, model).bound
        documents: Sequence[Document] = given if isinstance(given, list) else [given]
        columns = columns_by_role(bound, documents)
        options = {} if parameters is None else parameters.options()
        fields = in_parameters(options) | {role: f"inputs.{role}" for role in columns}
        if all(isinstance(one, str) for one in documents):
            fields[bound.roles[0]] = "inputs"
        once = () if isinstance(given, list) else tuple(fields[role] for role in columns)
        found = await ask(service, TaskRequest(name, columns, options, model=model, fields=fields, once=once))
        return reply(found.answers if isinstance(given, list) else found.answers[0], found)


def body_of(task: type[Task]) -> type[Asked]:
    """`inputs` and, with the options that a request may set, `parameters`."""
    hints = get_type_hints(task)
    options: dict[str, Any] = {
        one.name: (hints[one.name] | None, None) for one in option_fields(task) if one.name not in task.fixed_options
    }
    parameters = create_model(f"{task.__name__}Parameters", __base__=Parameters, __doc__=task.__doc__, **options)
    described = Field(description="A text, an object of texts by role, or a list of either.")
    inputs: Any = Annotated[Document | Several[Document], described]
    said: dict[str, Any] = {"inputs": (inputs, ...), "parameters": (parameters | None, None)}
    return create_model(task.__name__, __base__=Asked, **said)


def columns_by_role(task: Task, documents: Sequence[Document]) -> dict[str, list[Any]]:
    """The documents' texts by role; a text without a role is of the task's first one. Raises Invalid."""
    rows = [{task.roles[0]: one} if isinstance(one, str) else one for one in documents]
    roles = dict.fromkeys((*task.roles, *task.optional_roles))
    for row in rows:
        if not row.keys() <= roles.keys():
            raise Invalid("inputs", f"a document has the fields {', '.join(roles)} and no other")
    named = [role for role in roles if role in task.roles or any(role in row for row in rows)]
    return {role: [row.get(role) for row in rows] for role in named}
