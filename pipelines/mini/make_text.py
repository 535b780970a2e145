"""The training text: cleaned strings and paragraphs with their language, out of the packages that fetch.sh unpacked.

    python pipelines/mini/make_text.py WORK/src WORK/text.parquet

Columns: lang (as XLM-R names it), source, text, held_out. A string and its translations are held out together (one in
twenty by a hash of the English text, the page or the message id), so that no held-out document has a twin in training.
The Universal Declaration of Human Rights is no source: it is the test.
"""

import functools
import html
import itertools
import json
import re
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Strings = Iterator[tuple[str, str]]  # key shared by a string and its translations, text

RENAMED = {"nb": "no", "nn": "no", "fil": "tl", "kmr": "ku", "in": "id", "iw": "he"}
# Subtags that stay within the language as it is labelled; every other variant (ca-valencia, pa-Arab, …) is left out.
SUBTAGS = re.compile(r"(latn?|latin|hans|hant|arab|[a-z]{2}|419|uz-cyrl|sr-cyrl)", re.I)
EXCLUDED = {"pa-pk", "pa-arab", "kk-arab", "ku-arab", "hi-latn", "az-arab", "uz-arab", "ha-arab", "ms-arab", "zh-latn"}
# The languages by the first words of their letters' Unicode names.
SCRIPTS = {
    lang: scripts.split("+")
    for scripts, langs in (
        line.split(": ")
        for line in """\
LATIN: af az br bs ca cs cy da de en eo es et eu fi fr fy ga gd gl ha hr hu id is it jv ku la lt lv mg ms nl no om pl \
pt ro sk sl so sq su sv sw tl tr vi xh
CYRILLIC: be bg kk ky mk mn ru uk
CYRILLIC+LATIN: sr uz
ARABIC: ar fa ps sd ug ur
DEVANAGARI: hi mr ne sa
BENGALI: as bn
HEBREW: he yi
CJK: zh
CJK+HIRAGANA+KATAKANA: ja
HANGUL: ko
ETHIOPIC: am
GREEK: el
GUJARATI: gu
ARMENIAN: hy
GEORGIAN: ka
KHMER: km
KANNADA: kn
LAO: lo
MALAYALAM: ml
MYANMAR: my
ORIYA: or
GURMUKHI: pa
SINHALA: si
TAMIL: ta
TELUGU: te
THAI: th""".splitlines()
    )
    for lang in langs.split()
}
PER_SOURCE = 500_000  # characters of one language from one source
LEAST = 10_000  # a language with fewer characters in all is not trained on
SERBIAN = dict(zip("абвгдђежзијклмнопрстћуфхцчш", "abvgdđežzijklmnoprstćufhcčš", strict=True)) | {
    **{"љ": "lj", "њ": "nj", "џ": "dž", "Љ": "Lj", "Њ": "Nj", "Џ": "Dž"}
}
SERBIAN |= {k.upper(): v.upper() for k, v in SERBIAN.items() if k.upper() not in SERBIAN}
UZBEK = {"o‘": "ў", "g‘": "ғ", "sh": "ш", "ch": "ч", "yo": "ё", "yu": "ю", "ya": "я", "ye": "е", "’": "ъ"} | dict(
    zip("abdefghijklmnopqrstuvxyz", "абдефгҳижклмнопқрстувхйз", strict=True)
)


def language(code: str) -> str | None:
    """The label of a locale's code, or none if it is no language (or written form) of XLM-R's."""
    code = code.replace("_", "-").replace("@", "-").lower()
    base, _, rest = code.partition("-")
    base = RENAMED.get(base, base)
    if base not in SCRIPTS or code in EXCLUDED or not all(SUBTAGS.fullmatch(tag) for tag in rest.split("-") if tag):
        return None
    return base


@functools.cache
def script(char: str) -> str:
    return unicodedata.name(char, "?").split()[0].split("-")[0]


def clean(text: str, lang: str) -> str | None:
    """An interface's string as prose, without mark-up, placeholders, accelerators; none if little is left of it."""
    text = html.unescape(re.sub(r"<[^<>]*>", " ", text))
    text = re.sub(r"\(?(https?|www|ftp|file|about|chrome)[:.]\S+|\S+@\S+\.\w+", " ", text)
    text = re.sub(
        r"\$?\([A-Z0-9_]+\)|%[A-Z_]{2,}[0-9]*%?|%\d*\$?\(?\w*\)?[sSdilu]?|\$\w+\$?|\$\[\w+\]|__\w+__", " ", text
    )
    text = re.sub(r"\{[^{}]*\}", " ", text)
    text = re.sub(r"\s?\([~_&]\w\)", "", text)
    text = re.sub(r"[~_&](?=\w)|\.\.\.$|…$|:$|[{}<>|\\*#]", "", text)
    text = re.sub(r"\s+", " ", text).strip(" -–—=+/,;\"'")
    letters = [char for char in text if char.isalpha()]
    good = sum(script(char) in SCRIPTS[lang] for char in letters)
    if len(letters) < 2 or good < 0.75 * len(letters) or len(letters) < 0.5 * len(text.replace(" ", "")):
        return None
    return text


def read_mo(path: Path) -> Strings:
    data = path.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack(order + "3I", data[8:20])
    for i in range(count):
        key, value = (
            data[start : start + size].decode("utf-8", "replace")
            for size, start in (struct.unpack_from(order + "2I", data, at + 8 * i) for at in (originals, translations))
        )
        yield key.split("\x04")[-1].split("\0")[0], value.split("\0")[0]


def read_help(page: Path, key: str) -> Strings:
    body = page.read_text("utf-8", "replace").partition('id="DisplayArea"')[2].partition("<footer")[0]
    for i, block in enumerate(re.split(r"</?(?:p|h\d|li|td|th|div)\b[^>]*>", body)):
        if len(text := re.sub(r"\s+", " ", re.sub(r"<[^<>]*>", "", block)).strip()) > 30:
            yield f"{key} {i}", text


def read_xpi(path: Path) -> Strings:
    with zipfile.ZipFile(path) as xpi:
        for name in xpi.namelist():
            if not name.endswith((".ftl", ".properties")):
                continue
            key = ""
            for line in xpi.read(name).decode("utf-8", "replace").splitlines():
                if line.startswith("#") or not line.strip():
                    continue
                match = re.match(r"\s*([\w.-]+)\s*=\s*(.*)", line)
                if match:
                    key = f"{key.split('/')[0]}/{match[1]}" if line[0] == " " else match[1]
                value = match[2] if match else re.sub(r"^\s*\*?\[[\w-]+\]", "", line)
                value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), value)
                if value.strip() and "->" not in value:
                    yield f"{Path(name).name} {key}", value.replace("\\n", " ")


def read_pak(path: Path) -> Strings:
    data = path.read_bytes()
    version, _, count, _ = struct.unpack("<IB3xHH", data[:12])
    if version != 5:
        raise ValueError(f"{path}: .pak version {version}, wanted 5")
    names = dict(line.split(",")[1::-1] for line in Path(f"{path}.info").read_text("utf-8").splitlines())
    entries = [struct.unpack_from("<HI", data, 12 + 6 * i) for i in range(count + 1)]
    for (number, start), (_, end) in itertools.pairwise(entries):
        text = data[start:end].decode("utf-8", "replace")
        # Whole pages (licences, scripts) are resources too: strings of the interface are short.
        if len(text) < 2000 and "�" not in text and str(number) in names:
            yield names[str(number)], text


def read_json(path: Path) -> Strings:
    def walk(node: object, key: str) -> Strings:
        if isinstance(node, dict):
            for name, child in node.items():
                if name not in ("identity", "@metadata", "terms", "gender", "languageNames", "scriptNames"):
                    yield from walk(child, f"{key}/{name}" if key else name)
        elif isinstance(node, list):
            yield key, " ".join(x for x in node if isinstance(x, str))
        elif isinstance(node, str) and "plural," not in node:
            yield key, node

    data = json.loads(path.read_text("utf-8"))
    if {"main", "annotations"} & set(data):  # CLDR names the locale inside
        data = next(iter(data["main"].values())) if "main" in data else data["annotations"]["annotations"]
    elif len(data) == 1:
        data = next(iter(data.values()))
    yield from walk(data, "")


def read_blockly(path: Path) -> Strings:
    for line in path.read_text("utf-8").splitlines():
        if (match := re.match(r'Blockly\.Msg\["(\w+)"\] = (".*");\s*$', line)) and not match[1].endswith(
            ("_HUE", "URL")
        ):
            yield match[1], json.loads(match[2])


def sources(src: Path) -> Iterator[tuple[str, str, Strings]]:
    """Every locale of every source: source, code, strings."""
    for package in sorted(src.iterdir()):
        for folder in sorted(package.glob("usr/lib/libreoffice/program/resource/*")):
            for mo in sorted(folder.glob("LC_MESSAGES/*.mo")):
                yield "libreoffice", folder.name, read_mo(mo)
                if folder.name == "de":
                    yield "libreoffice", "en", ((key, key) for key, _ in read_mo(mo))
        for folder in sorted(package.glob("usr/share/libreoffice/help/*/text")):
            pages = sorted(folder.rglob("*.html"), key=lambda p: zlib.crc32(p.relative_to(folder).as_posix().encode()))
            for page in pages[:700]:
                yield "help", folder.parent.name, read_help(page, page.relative_to(folder).as_posix())
        for xpi in sorted(package.glob("usr/lib/firefox-esr/browser/extensions/*.xpi")):
            yield "firefox", xpi.name.removeprefix("langpack-").partition("@")[0], read_xpi(xpi)
    for pak in sorted(src.glob("chromium-l10n/usr/lib/chromium/locales/*.pak")):
        if "_" not in pak.stem:  # the gendered variants repeat
            yield "chromium", pak.stem, read_pak(pak)
    for path in sorted(src.glob("cldr-*/*/*/*.json")):
        if path.parent.name in ("pt-PT", "sr-Latn", "zh-Hant", "uz-Cyrl") or "-" not in path.parent.name:
            yield f"cldr-{path.stem.lower()}", path.parent.name, read_json(path)
    for translations in ("openstreetmap-id-tagging-schema/dist/translations", "hotosm-id/dist/locales"):
        for path in sorted((src / translations).glob("*.min.json")):
            if path.name != "index.min.json":
                yield "osm", path.name.partition(".")[0], read_json(path)
    for path in sorted(src.glob("oojs-ui/dist/i18n/*.json")):
        yield "ooui", path.stem, read_json(path)
    for path in sorted(src.glob("blockly/msg/*.js")):
        yield "blockly", path.stem, read_blockly(path)
    for path in sorted(src.glob("kolibri/kolibri/locale/*/LC_MESSAGES/*.json")):
        yield "kolibri", path.parent.parent.name, read_json(path)


def main(src: Path, out: Path) -> None:
    english: set[str] = set()
    rows: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for source, code, strings in sources(src):
        lang = language(code)
        if lang is None:
            continue
        written = lang + ("-latin" if lang == "sr" and re.search("lat", code, re.I) else "")
        for key, raw in strings:
            if text := clean(raw, lang):
                rows[lang, written + code[:5] * (lang in ("pt", "zh", "no")), source].append((key, text))
                if lang == "en":
                    english.add(text.lower())
    sizes: dict[str, int] = defaultdict(int)
    for (lang, _, _), found in rows.items():
        sizes[lang] += sum(len(text) for text in {text for _, text in found})
    table: dict[str, list[object]] = {"lang": [], "source": [], "text": [], "held_out": []}
    totals: dict[str, int] = defaultdict(int)
    for (lang, written, source), found in sorted(rows.items()):
        if sizes[lang] < LEAST:
            print(f"{lang} left out: {source} has {len(found)} strings", file=sys.stderr)
            continue
        seen: set[str] = set()
        size = 0
        # Spread what is kept over the whole source, and the same strings in every language.
        for key, text in sorted(found, key=lambda item: zlib.crc32(item[0].encode())):
            if text in seen or (lang != "en" and text.lower() in english) or size > PER_SOURCE:
                continue
            seen.add(text)
            size += len(text)
            variants = [text]
            if written == "sr" and script(next(filter(str.isalpha, text))) == "CYRILLIC":
                variants.append("".join(SERBIAN.get(char, char) for char in text))
            if lang == "uz" and script(next(filter(str.isalpha, text))) == "LATIN":
                variants.append(uzbek_cyrillic(text))
            group = key.partition(" ")[0] if source in ("help", "firefox") else key
            for variant in variants:
                for column, value in zip(
                    table.values(), (lang, source, variant, zlib.crc32(group.encode()) % 20 == 0), strict=True
                ):
                    column.append(value)
        totals[lang] += size
    pq.write_table(pa.table(table), out, compression="zstd")
    print(" ".join(f"{lang}:{size // 1000}k" for lang, size in sorted(totals.items(), key=lambda item: item[1])))
    print(len(table["text"]), "strings,", sum(totals.values()), "characters,", len(totals), "languages")


def uzbek_cyrillic(text: str) -> str:
    text = re.sub("[ʻʼ'`´]", "’", text.lower()).replace("o’", "o‘").replace("g’", "g‘").replace("‘", "‘")
    text = re.sub(r"\be", "э", text)
    return re.sub(r"o‘|g‘|sh|ch|yo|yu|ya|ye|[a-z’]", lambda m: UZBEK.get(m[0], m[0]), text).capitalize()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
