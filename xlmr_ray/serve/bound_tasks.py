"""Tasks with options of a request, kept for the next request that has the same ones."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from xlmr_ray.serve.models import Served
from xlmr_ray.tasks.task import Task

# Options are the callers' own text: labels, words, templates.
KEPT_TASKS = 256
KEPT_CHARACTERS = 1_000_000


class BoundTasks:
    """The last ones that were asked for: `KEPT_TASKS` at most, and no more of them than have `KEPT_CHARACTERS` of
    options together.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[int, str], Task] = OrderedDict()
        self.characters = 0
        self.lock = threading.Lock()

    def find(self, served: Served, options: Mapping[str, Any]) -> Task:
        """The task with these options: requests that have the same ones share the object, and so the head's pass.
        Raises UserError for options that it does not have.
        """
        if not options:
            return served.bound
        key = (id(served), json.dumps(options, sort_keys=True))
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        made = served.with_options(options)
        with self.lock:
            if key not in self.kept:
                self.characters += len(key[1])
            self.kept[key] = made
            while len(self.kept) > KEPT_TASKS or self.characters > KEPT_CHARACTERS:
                (_, said), _ = self.kept.popitem(last=False)
                self.characters -= len(said)
        return made

    def clear(self) -> None:
        with self.lock:
            self.kept.clear()
            self.characters = 0
