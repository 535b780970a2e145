"""What names a run: all that decides its answers, and nothing else. And the plan's file."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tests.models import save_classifier
from xlmr_ray.batch import identity, plan
from xlmr_ray.batch import prepare as preparing
from xlmr_ray.batch.identity import run_dtype, run_id
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.json_by_line import Damaged
from xlmr_ray.batch.ledger.record import plan_key, planned_shards
from xlmr_ray.batch.ledger.snapshot import planned_inputs
from xlmr_ray.batch.plan import begin_plan, columns_of, read_plan, task_recipes
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.store.base import Exists
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = save_classifier(
        tmp_path_factory.mktemp("saved"),
        id2label={0: "no", 1: "maybe", 2: "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
    )
    # A sentence-transformers folder as well: a dense layer after the pooling, and prompts.
    (folder / "2_Dense").mkdir()
    dense = {
        "in_features": 48,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "2_Dense" / "config.json", dense)
    safetensors.torch.save_file({"linear.weight": torch.ones(8, 48)}, folder / "2_Dense" / "model.safetensors")
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"id": f"r{i}", "lang": "xx", "text": f"text {i}", "other": "o"} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows[:12]), folder / "a.parquet", row_group_size=6)
    (folder / "b.csv").write_text("id,lang,text,other\n" + "".join(f"{r['id']},xx,{r['text']},o\n" for r in rows[12:]))
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))


def change_json(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


def change_tensor(path, name):
    tensors = safetensors.torch.load_file(path)
    tensors[name].view(-1)[0] += 1
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def job_of(model, corpus, tmp_path, **more):
    content = {
        "model": str(model),
        "input": {"path": str(corpus), "id": "id", "keep": ["lang"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(tmp_path / "out")},
        "cluster": {"shard_rows": 5},
    }
    for key, value in more.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return check_job(content, "test")


@pytest.fixture
def name_of(model, corpus, tmp_path):
    """The run's id of the job with such changes."""
    count = iter(range(99))

    def name(**more):
        job = job_of(model, corpus, tmp_path, **more)
        return prepare_run(job, open_store(str(tmp_path / f"out{next(count)}"))).plan.run_id

    return name


EMBEDDING = [{"task": "embedding"}]


def test_run_id_covers_everything():
    identity = {"inputs": [["a", 1, "e"]], "model": {"weights": "w"}, "options": {"max_length": 512, "text": "ä"}}
    assert run_id(identity) == run_id(dict(reversed(identity.items())))
    assert len(run_id(identity)) == 16
    changed = [
        {**identity, "inputs": [["a", 2, "e"]]},
        {**identity, "inputs": [["a", 1, "f"]]},
        {**identity, "model": {"weights": "v"}},
        {**identity, "options": {"max_length": 511, "text": "ä"}},
        {**identity, "options": {"max_length": "512", "text": "ä"}},
        {**identity, "new": None},
    ]
    assert len({run_id(one) for one in [identity, *changed]}) == 7


@pytest.mark.parametrize(
    "more",
    [
        {"tasks": [{"task": "text-classification", "top_k": 2}]},
        {"tasks": [{"task": "text-classification"}, {"task": "embedding"}]},
        {"tasks": EMBEDDING},
        {"input": {"text": "other"}},
        {"input": {"id": None}},
        {"input": {"id": "lang"}},
        {"input": {"keep": []}},
        {"input": {"keep": ["other", "lang"]}},
        {"input": {"max_row_bytes": 1000}},
        {"engine": {"max_length": 20}},
        {"engine": {"dtype": "bfloat16"}},
        {"engine": {"attn_implementation": "eager"}},
        {"engine": {"quantization": "int8-weights"}},
        {"errors": {"empty": "score"}},
    ],
    ids=json.dumps,
)
def test_an_option_that_decides_answers_names_another_run(name_of, more):
    assert name_of(**more) != name_of()


@pytest.mark.parametrize(
    "more",
    [
        {"name": "another"},
        {"cluster": {"shard_rows": 3, "encoders": 2, "tokenizers": 2}},
        {"engine": {"max_tokens": 99}},
        {"engine": {"device": "cpu"}},
        {"engine": {"dtype": "float32"}},
        {"errors": {"max_fraction": 0.5}},
        {"tasks": [{"task": "sentiment-analysis"}]},
        {"tasks": [{"task": "text-classification", "max_length": None}]},
        {"tasks": [{"task": "text-classification", "name": "mine"}]},  # alone, it names no column
    ],
    ids=json.dumps,
)
def test_what_decides_no_answer_names_the_same_run(name_of, more):
    assert name_of(**more) == name_of()


MODEL_CHANGES = {
    "encoder": lambda f: change_tensor(f / "model.safetensors", "roberta.embeddings.word_embeddings.weight"),
    "head": lambda f: change_tensor(f / "model.safetensors", "classifier.out_proj.weight"),
    "labels": lambda f: change_json(f / "config.json", id2label={"0": "a", "1": "b", "2": "c"}),
    "norm": lambda f: change_json(f / "config.json", layer_norm_eps=1e-3),
    "length": lambda f: change_json(f / "tokenizer_config.json", model_max_length=33),
    "truncation": lambda f: change_json(f / "tokenizer_config.json", truncation_side="left"),
    "tokenizer": lambda f: change_json(f / "tokenizer.json", normalizer=None),
    "dense": lambda f: change_tensor(f / "2_Dense" / "model.safetensors", "linear.weight"),
    "prompts": lambda f: change_json(f / "config_sentence_transformers.json", prompts={"query": "find: "}),
    "pooling": lambda f: write_json(f / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True}),
}


@pytest.mark.parametrize("change", MODEL_CHANGES.values(), ids=MODEL_CHANGES)
def test_a_changed_checkpoint_is_another_run(name_of, model, change):
    before = name_of(tasks=EMBEDDING)
    change(model)
    assert name_of(tasks=EMBEDDING) != before


def test_the_same_checkpoint_in_other_files_is_the_same_run(name_of, model):
    before = name_of(tasks=EMBEDDING)
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-{i + 1:05}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in parts.items():
        safetensors.torch.save_file({name: tensors[name] for name in held}, model / file, metadata={"format": "pt"})
    weight_map = {name: file for file, held in parts.items() for name in held}
    write_json(model / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})
    (model / "heads" / "mine").mkdir(parents=True)

    write_json(model / "heads" / "mine" / "config.json", {"model_type": "xlm-roberta"})
    (model / ".cache").mkdir()
    write_json(model / ".cache" / "seen.json", {"at": 5})
    assert name_of(tasks=EMBEDDING) == before


def test_inputs_name_the_run_by_key_size_and_etag(name_of, corpus):
    names = {name_of()}
    (corpus / "c.csv").write_text("id,lang,text,other\nx,xx,one more,o\n")
    names.add(name_of())
    (corpus / "c.csv").write_text("id,lang,text,other\nx,xx,one MORE,o\n")
    names.add(name_of())
    (corpus / "c.csv").rename(corpus / "d.csv")
    names.add(name_of())
    assert len(names) == 4
    (corpus / "d.csv").unlink()
    assert name_of() in names
    twice = [str(corpus / "b.csv"), str(corpus / "*.parquet"), str(corpus)]
    assert name_of(input={"path": twice}) in names


@pytest.mark.parametrize(("gpu", "dtype", "device"), [(False, "float32", "auto"), (True, "float16", "cuda")])
def test_auto_is_settled_with_the_plan(model, corpus, tmp_path, monkeypatch, name_of, gpu, dtype, device):
    here = name_of()
    for where in (identity, plan, preparing):
        monkeypatch.setattr(where, "on_gpu", lambda asked: gpu)
    monkeypatch.setattr(identity, "gpus_dtype", lambda: "float16")
    job = job_of(model, corpus, tmp_path)
    assert run_dtype(job.engine) == dtype
    engine = prepare_run(job, open_store(str(tmp_path / "out"))).recipe.engine
    assert (engine.dtype, engine.device) == (dtype, device)
    assert (name_of() == here) is not gpu
    asked = job_of(model, corpus, tmp_path, engine={"dtype": "bfloat16"})
    assert run_dtype(asked.engine) == "bfloat16"


@pytest.mark.parametrize("device", ["gpu", "cuda:1"])
def test_a_device_that_is_none(model, corpus, tmp_path, device):
    with pytest.raises(UserError, match=r"engine\.device.*'auto', 'cpu' or 'cuda'"):
        job_of(model, corpus, tmp_path, engine={"device": device})


# The plan's file


def planned(store, job, **more):
    recipes = task_recipes(job)
    inputs = find_inputs(job.input.path).inputs
    return begin_plan(store, job, recipes, columns_of(job, recipes), inputs, **{"shard_rows": 5, **more})


@pytest.fixture
def job(model, corpus, tmp_path):
    return job_of(model, corpus, tmp_path)


def test_it_reads_back_as_it_was_made(store, job, corpus):
    (corpus / "c.jsonl").write_bytes(b"")
    made = planned(store, job)
    read = read_plan(store, made.run_id)
    assert list(read.shards) == list(made.shards)
    assert [shard.rows for shard in made.shards] == [3, 3, 3, 3, 5, 3]
    assert {shard.header for shard in read.shards} == {(), ("id", "lang", "text", "other")}
    assert read.dead == made.dead
    assert (made.rows, len(made.dead)) == (21, 1)
    assert list(made.ids()) == list(planned_shards(store, made.run_id))
    assert list(planned_inputs(store, made.run_id)) == find_inputs(str(corpus)).inputs
    assert made.dead[0].input in find_inputs(str(corpus)).inputs
    whole = json.loads(store.get(plan_key(made.run_id))[0])
    assert [line["id"] for line in whole["shards"]] == list(made.ids())
    assert [line["key"] for line in whole["inputs"]] == [
        str(corpus / name) for name in ("a.parquet", "b.csv", "c.jsonl")
    ]
    assert read_plan(store, "0" * 16) is None


class Slow:
    """A store whose first look at a key finds nothing, as when another launch writes it in the next moment."""

    def __init__(self, store):
        self.store, self.looked = store, False

    def __getattr__(self, name):
        return getattr(self.store, name)

    def get(self, key):
        if not self.looked:
            self.looked = True
            raise FileNotFoundError(key)
        return self.store.get(key)


def test_of_two_launches_the_first_ones_plan_holds(store, job):
    first = planned(store, job)
    second = planned(Slow(store), job, shard_rows=2)
    assert list(second.shards) == list(first.shards)
    with pytest.raises(Exists):
        store.create(plan_key(first.run_id), b"")


def test_nothing_to_read(local, model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(b"")
    job = job_of(model, tmp_path / "*.jsonl", tmp_path)
    with pytest.raises(UserError, match=r"nothing to read: .*a\.jsonl.* \(and 1 more file\)"):
        planned(local, job)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.replace(b'"rows":3', b'"rows":"3"', 1),
        lambda data: data.replace(b'"first_row"', b'"first"', 1),
        lambda data: data.replace(b'"etag"', b'"tag"', 1),
        lambda data: data.replace(b'"id":"0000001-000000"', b'"id":"0000000-000000"', 1),
        lambda data: data.replace(b'"id":"0000001-000000"', b'"id":7', 1),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
    ],
    ids=["text", "name", "input", "twice", "number", "cut", "empty"],
)
def test_a_damaged_plan_is_named(local, job, edit):
    name = planned(local, job).run_id
    data = local.get(plan_key(name))[0]
    assert edit(data) != data
    local.put(plan_key(name), edit(data))
    with pytest.raises(Damaged, match=r"plan\.json: is damaged"):
        read_plan(local, name)
