"""`pre_tokenizer: file`: the ids that the `tokenizers` library gives with the file itself, wherever it can be set."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from tests.models import TOKENIZER, make_config
from xlmr_ray import UserError, XLMRobertaTokenizer, pipeline
from xlmr_ray.batch.job import Job, check_job, with_setting
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.stages.block import from_block, raise_failure, to_block
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.recipe import shard_to_json
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

TEXTS = ["trail  ", "query: hello\n", "x  y\t z", "plain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of XLM-R's whose file has a bare Metaspace, as e5's."""
    folder = tmp_path_factory.mktemp("metaspace")
    torch.manual_seed(4)
    transformers.XLMRobertaModel(make_config()).save_pretrained(folder)
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def ids(folder: Path) -> list[list[int]]:
    """What the library reads off the file."""
    return [encoding.ids for encoding in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(TEXTS)]


def job(folder: Path, tmp_path: Path, *more: str) -> Job:
    if not (tmp_path / "in.parquet").exists():
        pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    content = {
        "model": str(folder),
        "input": {"path": str(tmp_path / "in.parquet")},
        "tasks": [{"task": "embedding"}],
        "output": {"path": str(tmp_path / "out")},
        "engine": {"device": "cpu"},
    }
    for setting in more:
        content = with_setting(content, setting)
    return check_job(content, "job")


def test_python(folder: Path) -> None:
    of_file = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer="file")
    assert of_file(TEXTS)["input_ids"] == ids(folder)
    plain = XLMRobertaTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert plain(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"] != ids(folder)
    assert XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=None)(TEXTS) == plain(TEXTS)
    table = pipeline("embedding", folder, pre_tokenizer="file").table(TEXTS)
    assert table.equals(pipeline("embedding", folder, tokenizer=of_file).table(TEXTS))
    assert not table.equals(pipeline("embedding", folder).table(TEXTS))
    with pytest.raises(UserError, match="a tokenizer in memory has its pre_tokenizer"):
        pipeline("embedding", folder, tokenizer=of_file, pre_tokenizer="file")
    with pytest.raises(UserError, match="pre_tokenizer"):
        pipeline("embedding", folder, pre_tokenizer="metaspace")


def test_a_job(folder: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    prepared = prepare_run(job(folder, tmp_path, "engine.pre_tokenizer=file"), store)
    tokenize, encode = Tokenize(prepared.recipe), Encode(prepared.recipe)
    (shard,) = prepared.plan.shards
    block = tokenize(to_block(shard_to_json(shard), {}))
    _, encoded = from_block(block)
    assert encoded["task0"]["input_ids"].to_pylist() == ids(folder)
    block = encode(block)
    raise_failure(block.to_pylist()[0])
    wanted = pipeline("embedding", folder, device="cpu", pre_tokenizer="file").table(TEXTS)
    assert from_block(block)[1]["output"]["embedding"].to_pylist() == wanted["embedding"].to_pylist()


def test_it_is_part_of_a_runs_identity(folder: Path, tmp_path: Path) -> None:
    runs = [
        prepare_run(job(folder, tmp_path, *more), open_store(str(tmp_path / "out"))).plan.run_id
        for more in ((), ("engine.pre_tokenizer=file",), ("engine.pre_tokenizer=xlm-roberta",))
    ]
    assert runs[0] == runs[2] != runs[1]  # what it is anyway is no other run
    with pytest.raises(UserError, match=r"engine.pre_tokenizer: .*'xlm-roberta' or 'file', got 'bare'"):
        job(folder, tmp_path, "engine.pre_tokenizer=bare")


def test_the_service(folder: Path) -> None:
    models = [{"model": str(folder), "name": "m", "tasks": ["embedding"]}]
    settings = {"models": models, "engine": {"pre_tokenizer": "file", "threads": 1, "device": "cpu"}}
    service = Service.load(ServeSettings.model_validate(settings))
    try:
        model = service.models["m"]
        assert model.tokenizer(TEXTS)["input_ids"] == ids(folder)
        assert model.tokenizer_cutting("left")(TEXTS)["input_ids"] == ids(folder)
    finally:
        service.close()
