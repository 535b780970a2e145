"""Ids of texts by the words that were tokenized before: most words of a text are.

XLM-R's tokenizer normalizes a text, splits it at whitespace, and runs its model on each word by itself. So a text's ids
are those of its words, one after another, and a word's never change. What takes time is the model: with it asked only
for new words, one core does 1.1M tokens/s where the library does 0.17M (help pages in 15 languages, seen before), and
1.7 times the library's rate on pages of a language that comes for the first time (docs/performance.md).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xlmr_ray.tokenizer.safe_prefix import flattened

MOST = 1 << 17  # words; about 15 MB, and as much again for those before
LONGEST = 64  # characters of a word that is kept: longer ones do not come again
# Characters a word from which a text is left to the library: it is of a script without spaces.
WIDE = 32
MARK = "▁"  # stands before a word


@dataclass(frozen=True, slots=True)
class Ids:
    """The tokens of one text, as `Encoding` has them."""

    ids: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)


class KnownWords(dict[str, bytes]):
    """Words to the bytes of their ids. A word that is looked up and not there is tokenized, and there from then on.

    At `MOST` words all of them become the older ones, and the new begin with those of the older that come again.
    Several threads may look up at once: at worst a word is tokenized by each.
    """

    def __init__(self, backend: Tokenizer, most: int = MOST) -> None:
        """`backend` neither truncates nor pads. `usable` says whether it is one of XLM-R's kind."""
        super().__init__()
        self.most = most
        self.older: dict[str, bytes] = {}
        self.model, self.normalizer = backend.model, backend.normalizer
        words = flattened(backend.pre_tokenizer, "pretokenizers")
        self.usable = (
            type(self.model).__name__ == "Unigram"
            and [part["type"] for part in words] == ["WhitespaceSplit", "Metaspace"]
            and words[1] == words[1] | {"replacement": MARK, "prepend_scheme": "always", "split": True}
        )
        # What the library takes out of a text before, or sees otherwise: added tokens, the mark itself, and characters
        # that are whitespace to Python and not to Unicode.
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        self.unlike = (*sorted(added - {""}), MARK, "\x1c", "\x1d", "\x1e", "\x1f")

    def __missing__(self, word: str) -> bytes:
        found = self.older.get(word)
        if found is None:
            found = np.array([token.id for token in self.model.tokenize(MARK + word)], np.int32).tobytes()
            if len(word) > LONGEST:
                return found
        if len(self) >= self.most:
            self.older = dict(self)
            self.clear()
        self[word] = found
        return found

    def ids(self, text: str) -> Ids | None:
        """The ids of a text, without special tokens; None for one that the library is to see as a whole."""
        if any(one in text for one in self.unlike):
            return None
        normal = self.normalizer.normalize_str(text) if self.normalizer else text
        words = normal.split()
        if len(normal) > WIDE * len(words) or any(one in normal for one in self.unlike):
            return None
        return Ids(np.frombuffer(b"".join(map(self.__getitem__, words)), np.int32))
