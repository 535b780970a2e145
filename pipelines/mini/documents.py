"""Documents of the training text: strings and paragraphs of one language and one source, joined to a random length."""

import itertools
import math
import random
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

JOINS = [" ", ". ", ", ", "\n", "; ", ".\n"]
SPACELESS = {"ja", "km", "lo", "my", "th", "zh"}


class Documents:
    """Draws documents: every language as often as every other, its sources by the square root of their size."""

    def __init__(self, text: Path, *, held_out: bool, leave_out: set[str], only: set[str] | None = None) -> None:
        keep = (pc.field("held_out") == held_out) & ~pc.field("source").isin(pa.array(sorted(leave_out), pa.string()))
        if only is not None:
            keep &= pc.field("source").isin(pa.array(sorted(only), pa.string()))
        table = pq.read_table(text, columns=["lang", "source", "text"], filters=keep)
        self.strings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for lang, source, string in zip(*(column.to_pylist() for column in table.columns), strict=True):
            self.strings[lang][source.partition("-")[0]].append(string)
        self.weights = {
            lang: [math.sqrt(sum(map(len, strings))) for strings in sources.values()]
            for lang, sources in self.strings.items()
        }

    @property
    def languages(self) -> list[str]:
        return sorted(self.strings)

    def sample(self, lang: str, characters: int) -> list[str]:
        """Strings of all the sources, in turn, of so many characters in all (or all that there are)."""
        found: list[str] = []
        for strings in itertools.zip_longest(*self.strings[lang].values()):
            found += [string for string in strings if string]
            characters -= sum(len(string) for string in strings if string)
            if characters < 0:
                break
        return found

    def draw(self, lang: str, rng: random.Random) -> str:
        """A document of 15 to 300 characters, one in twelve of up to 1,200 (fewer where a character is a syllable)."""
        sources = self.strings[lang]
        strings = sources[rng.choices(list(sources), self.weights[lang])[0]]
        least, most = (300, 1200) if rng.random() < 1 / 12 else (15, 300)
        length = math.exp(rng.uniform(math.log(least), math.log(most))) * (0.4 if lang in ("ja", "ko", "zh") else 1)
        join = rng.choice(JOINS)
        if lang in SPACELESS and rng.random() < 0.5:
            join = join.strip(" ")
        parts: list[str] = []
        size = 0.0
        while size < length:
            parts.append(rng.choice(strings))
            size += len(parts[-1]) + len(join)
            if len(strings) < 3 and len(parts) > 3:
                break
        text = join.join(parts)
        if len(text) > length and lang not in SPACELESS:
            # Cut to the length at a word, and not always at the start of a string.
            start = rng.randrange(int(len(text) - length) + 1)
            text = text[start : start + max(int(length), 15)]
            text = (text.partition(" ")[2] if start else text).rpartition(" ")[0] or text
        elif len(text) > length:
            text = text[: max(int(length), 10)]
        roll = rng.random()
        if roll < 0.15:
            return text.lower()
        if roll < 0.17:
            return text.upper()
        if roll < 0.30 and join.startswith((".", "\n")):
            return text.capitalize()
        return text
