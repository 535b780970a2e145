"""Tokenizers made of a sentencepiece model, or of pieces and scores."""

import json
from pathlib import Path

import pytest
from transformers import XLMRobertaTokenizer as Reference

from tests.tokenizer.cases import TEXTS, articles, same
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.sentencepiece import fairseq_vocabulary, read_sentencepiece, write_sentencepiece
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


def test_from_sentencepiece(folder, tmp_path) -> None:
    known = XLMRobertaTokenizer.from_pretrained(folder)
    (name,) = known.save_vocabulary(tmp_path)
    assert Path(name).name == "sentencepiece.bpe.model"
    ours = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert ours.get_vocab() == known.get_vocab()
    assert (ours.bos_token_id, ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2, 3)
    assert ours.mask_token_id == len(ours) - 1
    pieces, charsmap, _ = read_sentencepiece(Path(name))
    theirs = Reference(fairseq_vocabulary(pieces), _spm_precompiled_charsmap=charsmap or None)
    texts = [*TEXTS, *articles()[::40]]
    same(ours, theirs, texts, return_offsets_mapping=True)
    assert XLMRobertaTokenizer(vocab_file=name)(texts).data == ours(texts).data
    assert XLMRobertaTokenizer(name)(texts).data == ours(texts).data
    (tmp_path / "copy").mkdir()
    (copied,) = ours.save_vocabulary(tmp_path / "copy", "x")
    assert Path(copied).name == "x-sentencepiece.bpe.model"
    assert Path(copied).read_bytes() == Path(name).read_bytes()


def test_sentencepiece_itself_reads_and_agrees(folder, tmp_path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    known = XLMRobertaTokenizer.from_pretrained(folder)
    (name,) = known.save_vocabulary(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=name)
    assert processor.get_piece_size() == len(known) - 2
    tokenizer = XLMRobertaTokenizer(name)
    for text in articles()[::40]:
        # A vocabulary trained here has no character map that would make spaces of line breaks.
        text = " ".join(text.split())
        assert tokenizer.tokenize(text) == processor.encode(text, out_type=str)


def test_sentencepiece_files_both_ways(tmp_path) -> None:
    from transformers.convert_slow_tokenizer import import_protobuf

    vocabulary = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁a", -1.5),
        ("人", -2.25),
        ("<mask>", 0.0),
    ]
    path = tmp_path / "sentencepiece.bpe.model"
    write_sentencepiece(path, vocabulary, b"\x00\x01charsmap" * 40)
    message = import_protobuf().ModelProto()
    message.ParseFromString(path.read_bytes())
    assert [(piece.piece, piece.score) for piece in message.pieces][3:] == vocabulary[4:-1]
    assert message.trainer_spec.model_type == 1
    assert message.normalizer_spec.precompiled_charsmap == b"\x00\x01charsmap" * 40
    message.trainer_spec.vocab_size = 6
    message.trainer_spec.input_sentence_size = 2**40
    path.write_bytes(message.SerializeToString())
    pieces, charsmap, _ = read_sentencepiece(path)
    assert fairseq_vocabulary(pieces) == vocabulary
    assert charsmap == b"\x00\x01charsmap" * 40
    message.trainer_spec.model_type = 2
    path.write_bytes(message.SerializeToString())
    with pytest.raises(UserError, match="model type 2"):
        read_sentencepiece(path)
    for junk in (b"", b"not a model at all", message.SerializeToString()[:-5]):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="not a sentencepiece model"):
            read_sentencepiece(path)


@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_from_a_vocabulary(small, add_prefix_space) -> None:
    spec = json.loads((small / "tokenizer.json").read_text())
    vocabulary = [(piece, score) for piece, score in spec["model"]["vocab"]]
    ours = XLMRobertaTokenizer(vocabulary, add_prefix_space=add_prefix_space)
    theirs = Reference(vocabulary, add_prefix_space=add_prefix_space)
    same(ours, theirs, TEXTS, return_offsets_mapping=True)
    same(ours, theirs, TEXTS, TEXTS[::-1])
    assert ours.batch_decode(ours(TEXTS).input_ids) == theirs.batch_decode(theirs(TEXTS).input_ids)
    assert XLMRobertaTokenizer()("word").input_ids == Reference()("word").input_ids
    with pytest.raises(UserError, match="mapping"):
        XLMRobertaTokenizer({"a": 1})
    with pytest.raises(UserError, match="one of"):
        XLMRobertaTokenizer(vocabulary, tokenizer_file=small / "tokenizer.json")
    file = XLMRobertaTokenizer(tokenizer_file=small / "tokenizer.json")
    assert file(TEXTS).data == XLMRobertaTokenizer.from_pretrained(small)(TEXTS).data


def test_mappings_of_scores(small) -> None:
    spec = json.loads((small / "tokenizer.json").read_text())
    scores = dict(spec["model"]["vocab"])
    ours = XLMRobertaTokenizer(scores)
    assert ours.get_vocab() == {piece: place for place, piece in enumerate(scores)}
    same(ours, Reference(list(scores.items())), TEXTS)
    with pytest.raises(
        UserError, match="mapping of pieces to ids, which a Unigram vocabulary cannot do without scores"
    ):
        XLMRobertaTokenizer(ours.get_vocab())


def test_the_text_beside_a_sentencepiece_model(small, tmp_path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    (model,) = XLMRobertaTokenizer.from_pretrained(small).save_vocabulary(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = [(processor.id_to_piece(place), processor.get_score(place)) for place in range(processor.get_piece_size())]
    text = tmp_path / "sentencepiece.bpe.vocab"
    text.write_text("".join(f"{piece}\t{score!r}\n" for piece, score in pieces), encoding="utf-8", newline="\n")
    known, ours = XLMRobertaTokenizer(model), XLMRobertaTokenizer(vocab_file=text)
    assert ours.get_vocab() == known.get_vocab()
    same(ours, Reference(fairseq_vocabulary(pieces)), TEXTS)
    # XLM-R's own order is kept as it is.
    text.write_text("<s>\t0\n<pad>\t0\n</s>\t0\n<unk>\t0\n▁a\u2028b\t-1.5\n<mask>\t0", encoding="utf-8")
    assert XLMRobertaTokenizer(text).convert_tokens_to_ids(["<pad>", "▁a\u2028b", "<mask>"]) == [1, 4, 5]
    for content, said in (("<s>\t0\n<pad>\n", "line 2: expected a piece, a tab"), ("<s>\tx\n", "line 1: expected")):
        text.write_text(content)
        with pytest.raises(UserError, match=said):
            XLMRobertaTokenizer(text)
    text.write_bytes(b"a\xff\t0\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 1"):
        XLMRobertaTokenizer(text)


def test_a_vocabulary_in_another_order_is_not_written(tmp_path) -> None:
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁a")]
    ours = XLMRobertaTokenizer(pieces)
    with pytest.raises(
        UserError, match=r"sentencepiece.bpe.model holds only XLM-R's order .*save_pretrained saves any"
    ):
        ours.save_vocabulary(tmp_path)
    ours.save_pretrained(tmp_path)
    assert XLMRobertaTokenizer.from_pretrained(tmp_path).get_vocab() == ours.get_vocab()


@pytest.mark.parametrize("vocab", [["abc"], [("a",)], [("a", "b")], [(5, 1.0)] * 5, [], [("a", 0.0)], 5], ids=str)
def test_what_is_no_vocabulary_is_refused(vocab) -> None:
    with pytest.raises(UserError, match=r"^vocab: "):
        XLMRobertaTokenizer(vocab)
