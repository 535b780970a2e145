"""Arguments that transformers' functions take and ours have no use for: one table a function."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xlmr_ray.errors import UserError

# What asks for nothing, whatever the argument.
NOTHING: tuple[Any, ...] = (None, False, "", {}, [])


@dataclass(frozen=True)
class Foreign:
    """By name, each with the reason: `ignored` ones change nothing here, `refused` ones would change the answer or the
    files, and are errors unless they ask for nothing. docs/transformers.md lists them.
    """

    function: str
    ignored: Mapping[str, str]
    refused: Mapping[str, str]

    def left(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments given that are in neither table. Raises UserError for one that is refused."""
        for name, value in given.items():
            if name in self.refused and not any(value is none or value == none for none in NOTHING):
                raise UserError(f"{self.function}: {name} is not supported: {self.refused[name]}")
        return {name: value for name, value in given.items() if name not in self.ignored and name not in self.refused}
