"""Documents that a task cannot take, all those of a call at once: each becomes an error row."""

from collections.abc import Mapping

from xlmr_ray.tokenizer.tokenizer import TokenizerError

NO_MASK = "no_mask"
WRONG_CHOICES = "wrong_choices"
WRONG_SPANS = "wrong_spans"


class UnfitRows(TokenizerError):
    """`failures`: index in the call -> (code, message), not empty. `index` and `reason` are the first's, for whoever
    takes one at a time.
    """

    def __init__(self, failures: Mapping[int, tuple[str, str]]) -> None:
        first = min(failures)
        super().__init__(first, failures[first][1])
        self.args = (failures,)  # so that a pickled copy is made anew from it
        self.failures = dict(failures)

    def __str__(self) -> str:
        code, message = self.failures[self.index]
        more = f" (and {len(self.failures) - 1} texts more)" if len(self.failures) > 1 else ""
        return f"text {self.index}: {code}: {message}{more}"
