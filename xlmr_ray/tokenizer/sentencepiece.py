"""XLM-R's `sentencepiece.bpe.model`, read and written without sentencepiece or protobuf: three fields of one message.

Field numbers are those of sentencepiece_model.proto: ModelProto{1: pieces, 2: trainer_spec, 3: normalizer_spec},
SentencePiece{1: piece, 2: score, 3: type}, TrainerSpec{3: model_type}, NormalizerSpec{2: precompiled_charsmap}.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xlmr_ray.errors import UserError

Vocabulary = list[tuple[str, float]]

_UNIGRAM = 1
_USER_DEFINED = 4
# The three pieces that every sentencepiece model starts with, in some order; XLM-R's own list has <pad> among them.
_LEADING = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]


class SentencePieceModel(NamedTuple):
    """The pieces with their scores, in the file's order, the normalizer's precompiled character map, and those of the
    pieces that are the user's own symbols, which are found before a text is split.
    """

    pieces: Vocabulary
    charsmap: bytes
    symbols: tuple[str, ...]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """What the file of a sentencepiece model holds.

    Raises UserError when the file is not a Unigram sentencepiece model.
    """
    pieces: Vocabulary = []
    symbols: list[str] = []
    charsmap, model_type = b"", _UNIGRAM
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1 and isinstance(value, bytes):
                piece, score = "", 0.0
                for number, part in _fields(value):
                    if number == 1 and isinstance(part, bytes):
                        piece = part.decode()
                    elif number == 2 and isinstance(part, bytes):
                        (score,) = struct.unpack("<f", part)
                    elif number == 3 and part == _USER_DEFINED:
                        symbols.append(piece)
                pieces.append((piece, score))
            elif field == 2 and isinstance(value, bytes):
                model_type = next((v for n, v in _fields(value) if n == 3 and isinstance(v, int)), model_type)
            elif field == 3 and isinstance(value, bytes):
                charsmap = next((v for n, v in _fields(value) if n == 2 and isinstance(v, bytes)), b"")
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{path}: not a sentencepiece model ({error})") from None
    if len(pieces) <= len(_LEADING):
        raise UserError(f"{path}: not a sentencepiece model (got {len(pieces)} pieces)")
    if model_type != _UNIGRAM:
        raise UserError(f"{path}: sentencepiece model type {model_type}, XLM-R's is {_UNIGRAM} (Unigram)")
    return SentencePieceModel(pieces, charsmap, tuple(symbols))


def read_vocabulary_text(path: Path) -> Vocabulary:
    """The text that sentencepiece writes beside a model (`.vocab`): a line a piece, piece and score with a tab between.

    It holds no character map, so a tokenizer made of it does not normalize. Raises UserError with the line at fault.
    """
    pieces: Vocabulary = []
    try:
        # Only line feeds end a line: pieces may hold any other character that splitlines would take for an end.
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    for number, line in enumerate(lines, 1):
        piece, tab, score = line.rpartition("\t")
        try:
            pieces.append((piece, float(score)))
        except ValueError:
            raise UserError(f"{path}: line {number}: expected a piece, a tab and a score") from None
        if not tab:
            raise UserError(f"{path}: line {number}: expected a piece, a tab and a score")
    return pieces


def fairseq_vocabulary(
    pieces: list[tuple[str, float]],
    *,
    bos_token: str = "<s>",
    pad_token: str = "<pad>",
    eos_token: str = "</s>",
    unk_token: str = "<unk>",
    mask_token: str = "<mask>",
) -> Vocabulary:
    """XLM-R's order of ids: four special tokens, the pieces after sentencepiece's own first three, the mask last."""
    special = [(token, 0.0) for token in (bos_token, pad_token, eos_token, unk_token)]
    return [*special, *pieces[len(_LEADING) :], (mask_token, 0.0)]


def camembert_vocabulary(
    pieces: Vocabulary, *, pad_token: str = "<pad>", unk_token: str = "<unk>", mask_token: str = "<mask>"
) -> Vocabulary:
    """CamemBERT's order of ids, as transformers' CamembertTokenizer makes it: only sentencepiece's first piece, the
    unknown one, has another id, and its own <s> and </s> are used.
    """
    first = [("<s>NOTUSED", 0.0), (pad_token, 0.0), ("</s>NOTUSED", 0.0), (unk_token, 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *pieces[1:], (mask_token, 0.0)]


def write_sentencepiece(
    path: Path,
    vocabulary: Vocabulary,
    charsmap: bytes,
    *,
    special: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
) -> None:
    """Write a vocabulary in XLM-R's order (see `fairseq_vocabulary`) as a sentencepiece model.

    `special`: its first four pieces and its last, which the file does not hold. Raises UserError where others stand
    there, since they would be lost.
    """
    if [piece for piece, _ in (*vocabulary[:4], *vocabulary[-1:])] != list(special):
        raise UserError(
            f"{path.name} holds only XLM-R's order ({', '.join(special[:4])} first, {special[4]} last); "
            "save_pretrained saves any"
        )
    out = bytearray()
    for piece, score, kind in [*_LEADING, *((piece, score, 1) for piece, score in vocabulary[4:-1])]:
        message = _bytes_field(1, piece.encode()) + b"\x15" + struct.pack("<f", score)
        out += _bytes_field(1, message + (b"\x18" + _varint(kind) if kind != 1 else b""))
    out += _bytes_field(2, b"\x18" + _varint(_UNIGRAM))
    out += _bytes_field(3, _bytes_field(1, b"nmt_nfkc") + _bytes_field(2, charsmap))
    path.write_bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (number, value) pairs of one protobuf message; fixed 32 and 64 bit values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _read_varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError("the file is cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
