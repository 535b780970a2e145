"""Cutting a long text by characters, before it is tokenized, without changing the ids that are kept."""

import json
import re
from typing import Any

from tokenizers import Tokenizer

# Letters and digits that never join a neighbouring space into one grapheme cluster. Left out: the letters that begin a
# cluster (U+0D4E; the other such letters are beyond the BMP) and the letters that continue one (Thai and Lao AM, the
# half-width voiced marks), since the normalizer works on whole clusters.
_JOINING = r"\u0d4e\u0e33\u0eb3\uff9e\uff9f\U00010000-\U0010ffff"
_BESIDE_SPACE = rf"[^\W_{_JOINING}]"
# Two of these side by side neither share a cluster nor compose: no Hangul letters, which NFKC makes syllables of.
_HANGUL_LETTERS = r"\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\ud7b0-\ud7ff\uffa0-\uffdc"
_BESIDE_EACH_OTHER = rf"[^\W_{_JOINING}{_HANGUL_LETTERS}]"
# Sentence ends are letters' equals before a space; without them most Chinese lines would have no cut.
_BEFORE_SPACE = rf"(?:(?<={_BESIDE_SPACE})|(?<=[.,;:!?)\]。，；：！？、」』）।॥]))"

# A text is proved without spaces only from this many times the wanted length: the proof tokenizes the prefix once for
# every length up to the longest piece.
_PROOF_FROM = 32


class LongText:
    """Finds how much of a text decides its first tokens. One per tokenizer; holds no state between calls.

    Why the ids cannot change. The tokenizer takes added tokens out of the text, normalizes it piece by small piece
    (grapheme clusters for XLM-R's character map; a base and its marks for NFKC; single characters for Nmt), splits at
    spaces, and runs the Unigram model on each word. So what stands left of a cut is tokenized as if the rest were
    there, when the cut (1) splits no added token, (2) is a border between the normalizer's pieces, and (3) is a border
    between words.

    `at_space` cuts before a space that has a plain letter or digit on its right and such a character or a sentence end
    on its left: (1) holds since no added token contains a space (else nothing is ever cut), (2) since neither
    neighbour can join the space and a space composes with nothing before it, (3) since the normalizer keeps that space
    (probed when this object is made) and what stands before it does not itself end in a space, which the rules about
    trailing and repeated spaces could see.

    `without_space` is for scripts and blobs with no such place. Within a word the Unigram model takes the path with
    the best score; the best path to any position depends only on what is before that position. No piece is longer
    than M characters, so the whole text's path must step on one of any M positions in a row. If the best paths to each
    of the last M positions of the prefix begin with the same k ids, so does the whole text's.

    A tokenizer of another make than XLM-R's (other normalizers, words joined over spaces, added tokens with spaces)
    is never cut: `usable` is false.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._longest_piece = 0
        added = backend.get_added_tokens_decoder().values()
        self._added = [token.content for token in added]
        self._added_as_typed = not any(token.normalized for token in added)
        self.usable = (
            type(backend.model).__name__ == "Unigram"
            and all(_piece_by_piece(part) for part in flattened(backend.normalizer, "normalizers"))
            and _splits_at_spaces(flattened(backend.pre_tokenizer, "pretokenizers"))
            and all(token.content.isascii() or not token.normalized for token in added)
            and not any(char.isspace() or char == "▁" for content in self._added for char in content)
        )
        spaces = [space for space in (" ", "\n", "\t", "\r\n") if self._kept(space)]
        self.usable = self.usable and bool(spaces)
        either = "|".join(spaces)
        self._at_space = re.compile(rf"{_BEFORE_SPACE}(?:{either})(?={_BESIDE_SPACE})")
        self._in_word = re.compile(rf"(?<={_BESIDE_EACH_OTHER})(?={_BESIDE_EACH_OTHER})")

    def at_space(self, text: str, chars: int) -> str | None:
        """A prefix of `chars` to `2 * chars` characters whose ids begin the ids of `text`; None if there is none."""
        found = self._at_space.search(text, chars, 2 * chars)
        return text[: found.start()] if found else None

    def without_space(self, text: str, chars: int, tokens: int) -> str | None:
        """As `at_space`, but only the first `tokens` ids are promised, and there are more than that."""
        if len(text) < _PROOF_FROM * chars or not self._added_as_typed:
            return None
        found = self._in_word.search(text, chars, 2 * chars)
        if not found:
            return None
        prefix = text[: found.start()]
        reach = max(map(len, self._added), default=0)
        if any(content in text[: found.start() + reach] for content in self._added):
            return None
        normalizer, pre_tokenizer, model = self._backend.normalizer, self._backend.pre_tokenizer, self._backend.model
        words = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(prefix) if normalizer else prefix)
        *before, (last, _) = words
        self._longest_piece = self._longest_piece or max(map(len, self._backend.get_vocab()))
        if len(last) <= self._longest_piece:
            return None
        wanted = tokens + 1 - sum(len(model.tokenize(word)) for word, _ in before)
        if wanted <= 0:
            return prefix
        first: list[int] | None = None
        for shorter in range(self._longest_piece):
            ids = [token.id for token in model.tokenize(last[: len(last) - shorter])[:wanted]]
            if len(ids) < wanted or (first is not None and ids != first):
                return None
            first = ids
        return prefix

    def _kept(self, space: str) -> bool:
        normalizer = self._backend.normalizer
        text = f"a{space}a"
        return self._backend.pre_tokenizer is not None and [
            word
            for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(
                normalizer.normalize_str(text) if normalizer else text
            )
        ] in (["▁a", "▁a"], ["a", "▁a"])


def flattened(component: Any, nested: str) -> list[dict[str, Any]]:
    """The serialized form of a normalizer or pre-tokenizer, its sequences flattened."""
    if component is None:
        return []

    def flatten(spec: dict[str, Any]) -> list[dict[str, Any]]:
        return [part for inner in spec[nested] for part in flatten(inner)] if spec["type"] == "Sequence" else [spec]

    return flatten(json.loads(component.__getstate__()))


def _piece_by_piece(part: dict[str, Any]) -> bool:
    squeezes_spaces = part["type"] == "Replace" and part["pattern"] == {"Regex": " {2,}"} and part["content"] in " ▁"
    return part["type"] in ("Precompiled", "Strip", "Nmt", "NFC", "NFKC", "Lowercase") or squeezes_spaces


def _splits_at_spaces(parts: list[dict[str, Any]]) -> bool:
    return bool(parts) and all(
        part["type"] == "WhitespaceSplit" or (part["type"] == "Metaspace" and part.get("split", True)) for part in parts
    )
