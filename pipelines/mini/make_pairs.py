"""Makes the sample of texts in pairs out of the sample corpus: for tasks that read more than one text.

    python pipelines/mini/make_pairs.py xlmr_ray/assets/udhr xlmr_ray/assets/udhr-pairs

A row is an article in two halves. `text` is the first; `text_pair` the second, or (`related` false) half an article in
another language; `choices` the second half among two others, at place `answer`; `question` and `context` ask for the
article's number; `masked` has one word hidden.
"""

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LANGUAGES = (
    "af am ar bg bn cs da de el en es et eu fa fi fr gu he hi hu hy id is it ja ka ko lt lv mk ml mr my ne nl no "
)
LANGUAGES += "pa pl pt ro ru si sk sl so sq sv sw ta te th tl tr uk ur vi xh zh"
ARTICLES = (3, 4, 12, 18, 24)
QUESTIONS = {"de": "Welche Zahl?", "es": "¿Qué número?", "fr": "Quel nombre ?", "ru": "Какое число?", "zh": "哪个数字?"}


def halves(text: str) -> tuple[str, str]:
    """Cut at the space nearest the middle, or in the middle where there is none."""
    middle = len(text) // 2
    cut = min((i for i, c in enumerate(text) if c == " "), key=lambda i: abs(i - middle), default=middle)
    if abs(cut - middle) > middle // 2:
        cut = middle
    return text[:cut].strip(), text[cut:].strip()


def masked(text: str, rng: random.Random) -> str:
    """The text with a word of four letters or more hidden, or two characters where there are no such words."""
    words = [word for word in text.split(" ") if len(word) >= 4 and word.isalpha()]
    hidden = rng.choice(words) if len(words) > 3 else text[len(text) // 2 : len(text) // 2 + 2]
    return text.replace(hidden, "<mask>", 1)


def main(udhr: Path, out: Path) -> None:
    rng = random.Random(7)
    table = pa.concat_tables(pq.read_table(path) for path in sorted(udhr.glob("*.parquet")))
    wanted = LANGUAGES.split()
    texts: dict[tuple[str, int], str] = {}
    for row in table.select(["lang", "article", "text"]).to_pylist():
        texts.setdefault((row["lang"], row["article"]), row["text"])
    rows: list[dict[str, Any]] = []
    for lang in wanted:
        for article in ARTICLES:
            if (lang, article) not in texts:
                continue
            first, second = halves(texts[lang, article])
            others = [halves(texts[other, article])[1] for other in rng.sample(wanted, 4) if (other, article) in texts]
            related = len(rows) % 2 == 0
            choices = [second, *others[:2]]
            rng.shuffle(choices)
            rows.append(
                {
                    "id": f"{lang}/{article}",
                    "lang": lang,
                    "text": first,
                    "text_pair": second if related else others[2],
                    "related": related,
                    "choices": choices,
                    "answer": choices.index(second),
                    "question": QUESTIONS.get(lang, "Which number?"),
                    "context": f"{article}. {texts[lang, article]}",
                    "masked": masked(texts[lang, article], rng),
                }
            )
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "part-0.parquet", compression="zstd", row_group_size=64)
    print(f"{len(rows)} rows in {len(set(wanted))} languages")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
