"""Questions about documents, and what counts as an answer; a line of a journal each."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xlmr_ray.train.judge.ask import JudgeAnswer
from xlmr_ray.train.judge.job import JudgeSection, plainly

NO_LABEL, REFUSED = "no_label", "refused"
SHOWN = 200  # characters of an answer that are kept


@dataclass(frozen=True)
class Reply:
    """An answer about the document at `row` of the sample, asked for the `turn`th time: a `label`, or `why` not."""

    row: int
    turn: int
    label: str | None
    why: str
    answer: str
    prompt_tokens: int
    completion_tokens: int


def question(section: JudgeSection, texts: Mapping[str, str]) -> str:
    """The prompt about a document. What stands for something is put in once: a document may hold such words, too."""
    parts = {f"{{{name}}}": text[: section.max_chars] for name, text in texts.items()}
    parts["{labels}"] = ", ".join(section.labels)
    out, rest = "", section.prompt
    while rest:
        first = min(parts, key=lambda part: rest.find(part) % (len(rest) + 1))
        before, found, rest = rest.partition(first)
        out += before + (parts[first] if found else "")
    return out


def reply_of(row: int, turn: int, answer: JudgeAnswer, known: Mapping[str, str]) -> Reply:
    """An answer that is a label but for case, quotes and stops counts as it; no other one is."""
    tokens = answer.prompt_tokens, answer.completion_tokens
    if answer.refused is not None:
        return Reply(row, turn, None, f"{REFUSED}_{answer.refused}", "", *tokens)
    found = known.get(plainly(answer.text or ""))
    return Reply(row, turn, found, "" if found is not None else NO_LABEL, (answer.text or "")[:200], *tokens)


def replies_of(journal: Path) -> list[Reply]:
    """What was answered before; a last line that was cut short is none."""
    if not journal.exists():
        return []
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with journal.open("rb+") as file:
            file.truncate(len(whole))
    return [Reply(**json.loads(line)) for line in whole.splitlines()]
