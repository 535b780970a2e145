"""Help pages of an office suite in 29 languages, out of the packages that fetch.sh unpacked: one row a paragraph.

    python pipelines/mini/make_help.py WORK/src WORK/help.parquet

Columns: lang, page (its path, the same for all translations), program (the folder: which of the suite's programs it is
about, or `common`), id (the same in translations), kind (`p`, `h1` … `h5`, `code`), text, held_out. A page is held out
with all its translations, and no paragraph of one is trained on that stands on another page, too.
"""

import sys
import zlib
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from make_text import RENAMED

PAGES = 900  # of each language, beside those held out; the same in all
LONGEST = 240  # characters of a paragraph that are read
SHORTEST = 20
REPEATED = 3  # a paragraph on more pages of a language is no page's
PROGRAMS = {"sbasic": "Basic", "scalc": "Calc", "schart": "Chart", "sdatabase": "Base", "sdraw": "Draw"}
PROGRAMS |= {"shared": "common", "simpress": "Impress", "smath": "Math", "swriter": "Writer"}
BLOCKS = {"h1", "h2", "h3", "h4", "h5", "p", "pre"}
VOID = {"a", "meta", "img", "br", "hr", "input", "col", "link", "source"}  # `a` is no container either
LEFT_OUT = {"ca-valencia", "en-GB", "pt-BR", "zh-TW", "dz"}  # a second form of a language, or one without a label
COLUMNS = ("lang", "page", "program", "id", "kind", "text", "held_out")
Row = tuple[str, str, str, str, str, str, bool]


class Page(HTMLParser):
    """Collects `(id, kind, text)` of its blocks. Of texts for several systems only the default one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str, str]] = []
        self.stack: list[str] = []
        self.hidden = 0  # the depth from which on nothing is read
        self.block: tuple[str, str] | None = None
        self.text = ""
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id") == "DisplayArea":
            self.inside = True
        if not self.inside or tag in VOID:
            return
        if tag == "footer":
            self.inside = False
            return
        self.stack.append(tag)
        if not self.hidden and "hidden" in found and not (found.get("id") or "").startswith("default"):
            self.hidden = len(self.stack)
        if tag in BLOCKS and self.block is None and not self.hidden:
            kind = "code" if tag == "pre" or "code" in (found.get("class") or "") else tag
            self.block, self.text = (found.get("id") or "", kind), ""

    def handle_endtag(self, tag: str) -> None:
        if not self.inside or tag in VOID or tag not in self.stack:
            return
        while self.stack:
            closed = self.stack.pop()
            if self.hidden > len(self.stack):
                self.hidden = 0
            if closed == tag:
                break
        if tag in BLOCKS and self.block is not None and not BLOCKS & set(self.stack):
            if text := " ".join(self.text.split()):
                self.blocks.append((*self.block, text))
            self.block = None

    def handle_data(self, data: str) -> None:
        if self.block is not None and not self.hidden:
            self.text += data


def is_held_out(page: str) -> bool:
    return zlib.crc32(page.encode()) % 20 == 0


def read(src: Path) -> list[Row]:
    rows: list[Row] = []
    for folder in sorted(src.glob("libreoffice-help-*/usr/share/libreoffice/help/*/text")):
        code = folder.parent.name
        if code in LEFT_OUT:
            continue
        lang = RENAMED.get(code, code.partition("-")[0])
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.html")]
        order = sorted(names, key=lambda name: zlib.crc32(name.encode()))
        held_out = [name for name in order if is_held_out(name)]
        for name in held_out + [name for name in order if not is_held_out(name)][:PAGES]:
            page = Page()
            page.feed((folder / name).read_text("utf-8", "replace"))
            program = PROGRAMS[name.partition("/")[0]]
            rows += [(lang, name, program, *block, is_held_out(name)) for block in page.blocks]
    return rows


def usable(rows: list[Row]) -> list[Row]:
    """Without what is too short, code, not translated, on many pages, or (in training) on a page that is held out."""
    pages: dict[tuple[str, str], set[str]] = defaultdict(set)
    for lang, page, _, _, _, text, _ in rows:
        pages[lang, text].add(page)
    english = {text for lang, _, _, _, _, text, _ in rows if lang == "en"}
    found = []
    for lang, page, program, place, kind, text, held_out in rows:
        where = pages[lang, text]
        leaks = not held_out and any(is_held_out(other) for other in where)
        foreign = lang != "en" and text in english
        if place and kind != "code" and len(text) >= SHORTEST and len(where) <= REPEATED and not leaks and not foreign:
            found.append((lang, page, program, place, kind, text[:LONGEST], held_out))
    return found


def main(src: Path, out: Path) -> None:
    rows = usable(read(src))
    pq.write_table(pa.table(dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))), out, compression="zstd")
    languages = Counter(row[0] for row in rows)
    print(f"{len(rows)} paragraphs of {len({row[1] for row in rows})} pages in {len(languages)} languages")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
