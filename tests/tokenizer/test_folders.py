"""Folders of tokenizers of every make, against what transformers' AutoTokenizer makes of them."""

import json
from pathlib import Path

import pytest
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from tests.models import make_config
from tests.tokenizer.cases import SPECIAL, TEXTS, articles, same
from xlmr_ray import UserError, XLMRobertaTokenizer

ODD = ["trail  ", "query: hello\n", "x <mask> y", "  lead", "a\u200bb ", "ﬁ ½ Ａ ™ \u200b", "a <pad> b", " ", "▁ x ▁▁ "]
ALL = [*TEXTS, *ODD]
LISTED = {
    "19999": {"content": "<mask>", "lstrip": True, "rstrip": True, "normalized": False, "special": True},
    "3": {"content": "<unk>", "lstrip": False, "rstrip": True, "normalized": False, "special": True},
}
BARE = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")


@pytest.fixture(scope="module")
def charsmap(tmp_path_factory) -> bytes:
    """A character map of sentencepiece's own, as XLM-R's files have it."""
    from transformers.convert_slow_tokenizer import import_protobuf

    message = import_protobuf().ModelProto()
    message.ParseFromString(trained(tmp_path_factory.mktemp("map")).read_bytes())
    return message.normalizer_spec.precompiled_charsmap


def trained(folder: Path, **options: object) -> Path:
    """A sentencepiece model that is trained by sentencepiece, whatever ids its special pieces have."""
    (folder / "text").write_text("\n".join(" ".join(text.split()) for text in articles()[:300]), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "model"),
        vocab_size=4000,
        character_coverage=0.98,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        **options,
    )
    path = folder / "sentencepiece.bpe.model"
    (folder / "model.model").rename(path)
    return path


def write_folder(small, folder, tokenizer, config, model_type="xlm-roberta") -> Path:
    """A folder with a `tokenizer.json`, and what says how to read it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return describe(folder, config, model_type)


def describe(folder, config, model_type="xlm-roberta") -> Path:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def equal(folder, ours=None, **options) -> None:
    """Ids, offsets and pieces are those of AutoTokenizer for the folder."""
    ours = ours or XLMRobertaTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder), **options)
    for given in (ALL, articles()[::90]):
        same(ours, theirs, given, return_offsets_mapping=True)
    same(ours, theirs, ALL, ALL[::-1])
    assert ours.decode(ours("Hello  world").input_ids) == theirs.decode(theirs("Hello  world").input_ids)


NAMED = {**SPECIAL, "model_max_length": 512}
CONFIGS = {
    "XLM-R": {**NAMED, "tokenizer_class": "XLMRobertaTokenizer"},
    "XLM-R, fast": {**NAMED, "tokenizer_class": "XLMRobertaTokenizerFast"},
    "no class": NAMED,
    "any class": {**NAMED, "tokenizer_class": "PreTrainedTokenizerFast"},
    "any class, new name": {**NAMED, "tokenizer_class": "TokenizersBackend"},
    "no space first": {**NAMED, "tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": False},
    "CamemBERT": {**NAMED, "tokenizer_class": "CamembertTokenizer"},
    "listed": {**NAMED, "tokenizer_class": "XLMRobertaTokenizer", "added_tokens_decoder": LISTED},
    "listed, any class": {**NAMED, "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": LISTED},
}


@pytest.mark.parametrize("parts", ["bare", "converted", "usual"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_tokenizer_file(small, tmp_path, charsmap, config, parts) -> None:
    """Bare Metaspace, what transformers 4 converted of sentencepiece (e5, bge-m3), and XLM-R's usual file."""
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
    if parts == "converted":
        more = [normalizers.Strip(left=False, right=True), normalizers.Replace(normalizers_regex(" {2,}"), "▁")]
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, *more])
    if parts != "usual":
        tokenizer.pre_tokenizer = BARE
    equal(write_folder(small, tmp_path, tokenizer, CONFIGS[config]))


def normalizers_regex(pattern: str):
    from tokenizers import Regex

    return Regex(pattern)


@pytest.mark.parametrize("model_type", ["bert", "camembert"])
def test_xlm_rs_tokenizer_of_other_models(small, tmp_path, charsmap, model_type) -> None:
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Precompiled(charsmap), BARE
    equal(write_folder(small, tmp_path, tokenizer, CONFIGS["XLM-R"], model_type))


def test_the_files_own_pre_tokenizer_by_name(small, tmp_path) -> None:
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    tokenizer.pre_tokenizer = BARE
    folder = write_folder(small, tmp_path, tokenizer, CONFIGS["XLM-R"])
    usual = XLMRobertaTokenizer.from_pretrained(folder)
    filed = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer="file")
    assert (usual.tokenize("trail  "), filed.tokenize("trail  ")) == (["▁trail"], ["▁trail", "▁"]) or (
        usual.tokenize("trail  ")[-1] != "▁" == filed.tokenize("trail  ")[-1]
    )
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL)
    same(filed, theirs, ALL, return_offsets_mapping=True, return_token_type_ids=False)
    assert usual.fingerprint != filed.fingerprint
    with pytest.raises(UserError, match="pre_tokenizer='files': expected one of xlm-roberta, file"):
        XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer="files")
    # Saved, it is read so again, by transformers, too.
    filed.save_pretrained(folder)
    equal(folder)
    assert XLMRobertaTokenizer.from_pretrained(folder).fingerprint == filed.fingerprint


@pytest.mark.parametrize("kind", ["NFKC", "map", "bare", "none", "no space"])
def test_what_we_save_is_read_with_equal_ids(small, tmp_path, charsmap, kind) -> None:
    """By transformers, tokenizers and sentence-transformers, whatever the normalizer and the pre-tokenizer."""
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    if kind in ("map", "bare"):
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    if kind == "bare":
        tokenizer.pre_tokenizer = BARE
    if kind == "none":
        tokenizer.normalizer = None
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    space = {"add_prefix_space": False} if kind == "no space" else {}
    first = XLMRobertaTokenizer(tokenizer_file=tmp_path / "tokenizer.json", model_max_length=64, **space)
    saved = tmp_path / "saved"
    transformers.XLMRobertaModel(make_config(num_hidden_layers=1)).save_pretrained(saved)
    first.save_pretrained(saved)
    equal(saved, first)
    assert XLMRobertaTokenizer.from_pretrained(saved).fingerprint == first.fingerprint
    plain = Tokenizer.from_file(str(saved / "tokenizer.json"))
    sentences = SentenceTransformer(modules=[modules.Transformer(str(saved))], device="cpu").tokenizer
    for text in ALL:
        ids = first(text).input_ids
        assert plain.encode(text).ids == ids
        assert sentences(text)["input_ids"] == ids
    said = json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert said == ("XLMRobertaTokenizer" if kind in ("map", "none") else "PreTrainedTokenizerFast")


SPECIAL_PIECES = {
    "unk 0, bos 1, eos 2": {},
    "bos 0, eos 1, unk 2": {"bos_id": 0, "eos_id": 1, "unk_id": 2},
    "bos 0, pad 1, eos 2, unk 3": {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3},
    "symbols": {"user_defined_symbols": ["[X]", "<tag>"]},
}


@pytest.mark.parametrize("pieces", SPECIAL_PIECES)
@pytest.mark.parametrize("kind", ["XLMRoberta", "Camembert", "camembert, no class"])
def test_a_sentencepiece_model_only(tmp_path, kind, pieces) -> None:
    trained(tmp_path, **SPECIAL_PIECES[pieces])
    named = None if "no class" in kind else {**NAMED, "tokenizer_class": f"{kind}Tokenizer"}
    folder = describe(tmp_path, named, kind.partition(",")[0].lower().replace("xlmr", "xlm-r"))
    ours = XLMRobertaTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    same(ours, theirs, [*ALL, "a [X] b<tag>c", "<s>NOTUSED"], return_offsets_mapping=True)
    assert (ours.bos_token_id, ours.mask_token_id) == (theirs.bos_token_id, theirs.mask_token_id)
    assert len(ours) == len(theirs)
    ours.save_pretrained(tmp_path / "saved")
    describe(tmp_path / "saved", None, "camembert")
    equal(tmp_path / "saved", ours)
