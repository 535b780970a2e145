"""A corpus with copies: exact ones, as other programs would write them, and lightly changed ones."""

import random
import unicodedata
from dataclasses import dataclass
from itertools import combinations

from xlmr_ray.batch.duplicates.sketch import WIDTH, shingled


@dataclass(frozen=True)
class Copied:
    """Texts with their languages; of each, which text it was made of (its own place where of none), and how."""

    texts: list[str]
    languages: list[str]
    of: list[int]
    how: list[str]


def with_copies(texts: list[str], languages: list[str], seed: int = 0) -> Copied:
    """Of every third text an exact copy, and of every third one that is lightly changed."""
    drawn = random.Random(seed)
    found = Copied(list(texts), list(languages), list(range(len(texts))), ["original"] * len(texts))
    for place, (text, language) in enumerate(zip(texts, languages, strict=True)):
        how = ("exact", "changed", None)[place % 3]
        if how is not None:
            found.texts.append(rewritten(text, drawn) if how == "exact" else changed(text, drawn))
            found.languages.append(language)
            found.of.append(place)
            found.how.append(how)
    return found


def rewritten(text: str, drawn: random.Random) -> str:
    """The same text with other white space, or decomposed."""
    return drawn.choice([text, f"\n{text} \t", "\u3000".join(text.split(" ")), unicodedata.normalize("NFD", text)])


def changed(text: str, drawn: random.Random) -> str:
    """With a hundredth of its characters in one place replaced by ones from another place, and a note at its end."""
    size = max(3, len(text) // 100)
    at, source = (drawn.randrange(max(1, len(text) - size)) for _ in range(2))
    return f"{text[:at]}{text[source : source + size][::-1]}{text[at + size :]} ({drawn.randrange(100)})"


def shingles(text: str) -> set[str]:
    whole = shingled(text)
    return {whole[at : at + WIDTH] for at in range(max(1, len(whole) - WIDTH + 1))}


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def pairs_in(groups: list[int]) -> set[tuple[int, int]]:
    """All pairs of places with the same value."""
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return {pair for of in members.values() for pair in combinations(of, 2)}
