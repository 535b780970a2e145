"""`sparse`, `multi-vector` and `hybrid-similarity` on a small bge-m3 against what its paper says, and `multi-vector` on
folders that sentence-transformers wrote, against its `MultiVectorEncoder`.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tasks.m3 import Oracle, save_m3
from tests.tasks.texts import corpus
from xlmr_ray import UserError, pipeline
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings

TOLERANCE = 1e-5
TEXTS = [text for text in corpus() if text != "</s>"]


@pytest.fixture(scope="session")
def m3(tmp_path_factory):
    return save_m3(tmp_path_factory.mktemp("m3"))


@pytest.fixture(scope="session")
def oracle(m3):
    return Oracle(m3)


def test_weights_are_those_of_the_paper(m3, oracle):
    got = pipeline("sparse", m3, device="cpu")(TEXTS)
    _, expected, _ = oracle(TEXTS)
    assert sum(map(len, got)) > 500
    for text, mine, theirs in zip(TEXTS, got, expected, strict=True):
        assert mine.keys() == theirs.keys(), text
        assert all(abs(mine[one] - theirs[one]) < TOLERANCE * max(1, theirs[one]) for one in theirs)
        assert list(mine) == sorted(mine)
        assert all(weight > 0 for weight in mine.values())


def test_pieces_stand_beside_their_ids(m3, oracle):
    pipe = pipeline("sparse", m3, device="cpu", pieces=True)
    table = pipe.table(TEXTS)
    for weights, pieces in zip(table["sparse"].to_pylist(), table["pieces"].to_pylist(), strict=True):
        assert pipe.tokenizer.convert_ids_to_tokens([one for one, _ in weights]) == pieces
    assert pipe(TEXTS[0]) == {
        oracle.tokenizer.convert_ids_to_tokens(one): weight
        for one, weight in pipeline("sparse", m3, device="cpu")(TEXTS[0]).items()
    }


def test_windows_keep_the_largest_weight_of_each(m3):
    text = " ".join(TEXTS[:6])
    whole = pipeline("sparse", m3, device="cpu", long="windows", max_length=32, stride=4)
    (row,) = whole.table([text]).to_pylist()
    assert row["windows"] > 3
    assert row["truncated"] is False
    encoded = whole.task.prepare(whole_table(text), whole.tokenizer)
    expected: dict[int, float] = {}
    cut = pipeline("sparse", m3, device="cpu")
    results = cut.engine.run(encoded["input_ids"]).raw[0][:, 0]
    ids = encoded["input_ids"].combine_chunks().flatten().to_pylist()
    special = {whole.tokenizer.cls_token_id, whole.tokenizer.eos_token_id, whole.tokenizer.unk_token_id}
    for one, weight in zip(ids, results.tolist(), strict=True):
        if one not in special and weight > expected.get(one, 0.0):
            expected[one] = weight
    assert dict(row["sparse"]) == expected


def whole_table(*texts):
    import pyarrow as pa

    return pa.table({"text": list(texts)})


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_vectors_of_tokens_are_those_of_the_paper(m3, oracle, precision):
    pipe = pipeline("multi-vector", m3, device="cpu", precision=precision)
    table = pipe.table(TEXTS)
    _, _, expected = oracle(TEXTS)
    for text, mine, theirs, row in zip(TEXTS, pipe.task.answers(table), expected, table.to_pylist(), strict=True):
        assert mine.dtype == np.dtype(precision)
        assert mine.shape == theirs.shape == (row["tokens"] - 1, 48)
        assert np.abs(mine - theirs.numpy().astype(precision)).max() <= (TOLERANCE if precision == "float32" else 1e-3)
        spans = list(zip(row["start"], row["end"], strict=True))
        called = pipe.tokenizer(text, truncation=True, max_length=64, return_offsets_mapping=True)
        assert spans == [*map(tuple, called["offset_mapping"][1:-1]), (-1, -1)]


def test_another_files_layer_by_name(m3, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in m3.iterdir():
        if path.name not in ("sparse_linear.pt", "colbert_linear.pt"):
            (folder / path.name).symlink_to(path)
    with pytest.raises(UserError, match=r"no file colbert_linear\.pt, .* give head_file: FILE"):
        pipeline("multi-vector", folder, device="cpu")
    state = torch.load(m3 / "colbert_linear.pt", weights_only=True)
    save_file({f"linear.{name}": tensor.contiguous() for name, tensor in state.items()}, folder / "late.safetensors")
    mine = pipeline("multi-vector", folder, device="cpu", head_file="late.safetensors")(TEXTS[:3])
    for one, other in zip(mine, pipeline("multi-vector", m3, device="cpu")(TEXTS[:3]), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(UserError, match=r"late\.safetensors: linear\.weight: got shape \(48, 48\), expected \(1, 48\)"):
        pipeline("sparse", folder, device="cpu", head_file="late.safetensors")
    with pytest.raises(UserError, match="leads out of the folder"):
        pipeline("sparse", folder, device="cpu", head_file="../late.safetensors")


@pytest.mark.parametrize("width", [48, 20])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.4, 0.2, 0.4)])
def test_pair_scores(tmp_path, width, weights):
    folder = save_m3(tmp_path, width)
    pairs = [(TEXTS[i], TEXTS[i + 1]) for i in range(0, 12, 2)] + [(TEXTS[0], TEXTS[0]), ("a", "b c"), (TEXTS[-1], "a")]
    got = pipeline("hybrid-similarity", folder, device="cpu", weights=list(weights))(
        [{"text": query, "text_pair": passage} for query, passage in pairs]
    )
    for mine, theirs in zip(got, Oracle(folder).scores(pairs, weights), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(abs(mine[name] - theirs[name]) < TOLERANCE * max(1, abs(theirs[name])) for name in theirs), mine


def test_all_three_in_one_pass(m3):
    """One pass of the encoder, and the same bits as each task by itself and as each text by itself."""
    names = ("embedding", "sparse", "multi-vector")
    apart = [pipeline(name, m3, device="cpu") for name in names]
    engine = Engine.load(m3, [pipe.task for pipe in apart], EngineSettings(device="cpu"))
    encoded = [pipe.task.prepare(whole_table(*TEXTS), pipe.tokenizer) for pipe in apart]
    engine.stats.sequences = 0
    outputs = engine.outputs(encoded)
    assert engine.stats.sequences == len(TEXTS)
    for pipe, output in zip(apart, outputs, strict=True):
        together = output.table
        assert not output.failed
        assert together.equals(pipe.table(TEXTS))
        for index in (0, 7, len(TEXTS) - 1):
            assert together.slice(index, 1).to_pylist() == pipe.table([TEXTS[index]]).to_pylist()


@pytest.fixture(scope="module")
def make_multi_vector_folder(tmp_path_factory, plain_encoder):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    def make(*, width=16, normalize=True, skipped=(), **own):
        torch.manual_seed(5)
        tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        parts = [Transformer(str(plain_encoder), max_seq_length=64)]
        if width:
            parts.append(Dense(48, width, bias=False, activation_function=torch.nn.Identity(), **tokens))
        if normalize:
            parts.append(Normalize(module_input_name="token_embeddings"))
        parts.append(MultiVectorMask(skiplist_words=list(skipped)))
        folder = tmp_path_factory.mktemp("multi-vector")
        model = MultiVectorEncoder(modules=parts, device="cpu", **own)
        model.save(str(folder))
        return folder, model

    return make


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"width": None},
        {"normalize": False},
        {"skipped": [",", ".", "▁"]},
        {"prompts": {"query": "query: ", "document": "passage: "}},
    ],
    ids=["projected", "states", "not normalized", "skip list", "prompts"],
)
def test_folders_of_sentence_transformers(make_multi_vector_folder, made):
    folder, model = make_multi_vector_folder(**made)
    texts = [*TEXTS[:12], "One, two, three. And more, and more."]
    for kind, encode in (("document", model.encode_document), ("query", model.encode_query)):
        options = {"prompt_name": kind} if kind in model.prompts else {}
        mine = pipeline("multi-vector", folder, device="cpu", **options)(texts)
        theirs = encode(texts, convert_to_numpy=True)
        for one, other in zip(mine, theirs, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() < TOLERANCE * max(1, np.abs(other).max())


@pytest.mark.parametrize("at", [1, 2])
def test_characters_of_tokens_behind_a_prompt(m3, oracle, at):
    """A prompt may end inside of a token: what the token has of the text is where its vector is."""
    text = next(
        one for one in TEXTS if one[0].isalpha() and oracle.tokenizer.tokenize(one)[0].startswith(f"▁{one[:3]}")
    )
    (row,) = pipeline("multi-vector", m3, device="cpu", prompt=text[:at]).table([text[at:]]).to_pylist()
    called = oracle.tokenizer(text, truncation=True, max_length=64, return_offsets_mapping=True)
    offsets = [(max(start - at, 0), end - at) if end > at else (-1, -1) for start, end in called["offset_mapping"][1:]]
    assert offsets[0][0] == 0
    assert list(zip(row["start"], row["end"], strict=True)) == offsets


def test_a_whole_prompt_has_no_characters_of_the_text(m3, oracle):
    prompt, text = "query: ", TEXTS[0]
    (row,) = pipeline("multi-vector", m3, device="cpu", prompt=prompt).table([text]).to_pylist()
    called = oracle.tokenizer(prompt + text, truncation=True, max_length=64, return_offsets_mapping=True)
    at = len(prompt)
    offsets = [(start - at, end - at) if start >= at else (-1, -1) for start, end in called["offset_mapping"][1:]]
    assert offsets[0] == (-1, -1)
    assert list(zip(row["start"], row["end"], strict=True)) == offsets
