"""A tokenizer for the tasks of a job that share it: what one has had encoded of a shard, the others are given."""

from typing import Any

import pyarrow as pa

from xlmr_ray.tokenizer.ragged import Ragged
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


class TokenizedOnce(XLMRobertaTokenizer):
    """Remembers the calls of `encode_ragged` until `forget`. Comparing texts is nothing beside tokenizing them."""

    calls: list[tuple[pa.ChunkedArray, pa.ChunkedArray | None, dict[str, Any], Ragged]]

    def forget(self) -> None:
        """Before each shard."""
        self.calls = []

    def encode_ragged(self, texts: Any, pairs: Any = None, **how: Any) -> Ragged:
        for old, old_pairs, old_how, found in self.calls:
            if how == old_how and same(texts, old) and same(pairs, old_pairs):
                return found
        found = super().encode_ragged(texts, pairs, **how)
        self.calls.append((texts, pairs, how, found))
        return found


def same(one: Any, other: Any) -> bool:
    """Whether two columns of texts, or None for no column, are equal."""
    if isinstance(one, pa.Array | pa.ChunkedArray) and type(one) is type(other):
        return bool(one.equals(other))
    return one is None and other is None
