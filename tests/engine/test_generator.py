"""The generator against transformers' own pipeline, and against itself in other company."""

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import add_tokenizer, make_config
from xlmr_ray import UserError, XLMRobertaConfig
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.engine import generator as module
from xlmr_ray.engine.generator import Generator, generator
from xlmr_ray.tasks.text_generation import TextGeneration

PROMPTS = ["All human beings", "Tous les êtres humains naissent libres", "", "人人生而自由", "All human minds", "a b c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A decoder whose texts end now and then."""
    torch.manual_seed(4)
    model = transformers.XLMRobertaForCausalLM(make_config(is_decoder=True))
    with torch.no_grad():
        model.lm_head.bias[2] += 9
    folder = tmp_path_factory.mktemp("decoder")
    model.save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def loaded(folder) -> Generator:
    return Generator.load(folder, bind(folder))


def bind(folder: Path, **options) -> TextGeneration:
    return TextGeneration.bind(folder, XLMRobertaConfig.from_dict(read_config(folder)), options)


def written(loaded: Generator, folder: Path, prompts=PROMPTS, max_tokens=4096, **options):
    """The answers of a task with these options, and the run's result."""
    one = Generator.of(loaded.model, bind(folder, **options), loaded.tokenizer, max_tokens=max_tokens)
    result = one.run(one.task.prepare(pa.table({"text": prompts}), one.tokenizer))
    return one.task.answers(result.table), result, one


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.pipeline("text-generation", model=str(folder), device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"return_full_text": False},
        {"add_special_tokens": False},
        {"stop_sequence": ["e", "a"], "eos_token_id": [5]},
    ],
    ids=str,
)
def test_texts_are_those_of_the_references_pipeline(loaded, folder, reference, options):
    prompts = [text for text in PROMPTS if text or "stop_sequence" not in options]
    options = {"do_sample": False, "max_new_tokens": 12, **options}
    assert written(loaded, folder, prompts, **options)[0] == reference(prompts, **options)


def test_samples_are_those_of_the_references_pipeline_with_the_same_seeds(loaded, folder, reference):
    options = {"max_new_tokens": 12, "top_k": 20}
    answers, _, one = written(loaded, folder, seed=3, **options)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = one.task.prepare(pa.table({"text": [prompt]}), one.tokenizer)["input_ids"][0].values.to_numpy()
        torch.manual_seed(generator(3, ids, 0, torch.device("cpu")).initial_seed())
        assert reference(prompt, **options) == answer  # which samples at 0.7, as nobody says otherwise
    assert written(loaded, folder, seed=4, **options)[0] != answers


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_return_sequences": 3}, {"num_beams": 2}], ids=str)
def test_a_text_is_the_same_in_any_company_and_order(loaded, folder, options):
    options = {"max_new_tokens": 8, **options}
    prompts = [*PROMPTS, *(text + "!" for text in PROMPTS), *PROMPTS]
    whole, result, one = written(loaded, folder, prompts, **options)
    assert whole[: len(PROMPTS)] == whole[-len(PROMPTS) :]
    backwards, _, small = written(loaded, folder, prompts[::-1], max_tokens=1, **options)
    assert backwards[::-1] == whole
    assert small.stats.batches == len(set(prompts)) > one.stats.batches
    assert result.failed == {}


def test_what_was_written_while_others_went_on_is_no_part_of_a_text(loaded, folder):
    options = {"do_sample": False, "max_new_tokens": 20, "return_full_text": False, "eos_token_id": [5]}
    free, result, _ = written(loaded, folder, ["All human beings", "All human minds"], **options)
    assert result.table["tokens"].to_pylist() == [20, 20]
    string = free[0][0]["generated_text"][3:5]
    both = written(loaded, folder, ["All human beings", "All human minds"], stop_sequence=string, **options)[0]
    alone = [written(loaded, folder, [p], stop_sequence=string, **options)[0][0] for p in PROMPTS[:1] + PROMPTS[4:5]]
    assert both == alone
    assert both[0][0]["generated_text"] in free[0][0]["generated_text"][:-1]


def test_tokens_count_the_end_and_nothing_behind(loaded, folder):
    _, result, one = written(loaded, folder, do_sample=False, max_new_tokens=30, return_full_text=False)
    counts = result.table["tokens"].to_pylist()
    assert min(counts) < 30
    assert one.stats.tokens == sum(counts) + sum(len(row) for row in one.tokenizer(PROMPTS)["input_ids"])
    assert one.stats.sequences == len(PROMPTS)


def test_positions_of_the_training(loaded, folder):
    task = bind(
        folder, positions="forward", do_sample=False, max_new_tokens=5, eos_token_id=[5], return_full_text=False
    )
    one = Generator.of(loaded.model, task, loaded.tokenizer)
    encoded = task.prepare(pa.table({"text": PROMPTS[:1]}), one.tokenizer)
    ids = torch.tensor(encoded["input_ids"].to_pylist())
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, loaded.model(ids).logits[:, -1:].argmax(-1)], 1)
    assert one.run(encoded).table["generated_text"].to_pylist() == [
        one.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    ]


def test_a_lack_of_memory_makes_batches_smaller_and_then_fails_a_row(loaded, folder, monkeypatch):
    real = module.generate

    def tight(model, ids, *args, **kwargs):
        if len(ids) > 2 or ids.shape[1] > 8:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate a lot")
        return real(model, ids, *args, **kwargs)

    prompts = [f"a {letter}" for letter in "bcdefgh"] + ["Tous les êtres humains naissent libres et égaux"]
    options = {"do_sample": False, "max_new_tokens": 4}
    expected = written(loaded, folder, prompts, **options)[1].table
    monkeypatch.setattr(module, "generate", tight)
    _, result, one = written(loaded, folder, prompts, **options)
    assert result.table == expected.slice(0, 7)
    assert result.table.num_rows == 7
    code, message = result.failed[7]
    assert code == "out_of_memory"
    assert "do not fit" in message
    assert one.max_tokens < 4096


def test_scores_that_are_no_numbers_fail_their_row_alone(loaded, folder):
    prompts = ["a b", "c d", "e f"]
    encoded = loaded.tokenizer(prompts)["input_ids"]
    assert len({len(row) for row in encoded}) == 1
    poison = encoded[1][1]
    words = loaded.model.roberta.embeddings.word_embeddings.weight
    kept = words[poison].clone()
    expected = written(loaded, folder, prompts, max_new_tokens=3)[1].table
    with torch.no_grad():
        words[poison] = torch.nan
        # The product over the vocabulary has that row, too: the last product must be another.
        loaded.model.lm_head.decoder.weight = torch.nn.Parameter(words.nan_to_num(0).clone())
        _, result, _ = written(loaded, folder, prompts, max_new_tokens=3)
        words[poison] = kept
        loaded.model.lm_head.decoder.weight = words
    assert list(result.failed) == [1]
    assert result.failed[1][0] == "non_finite"
    assert result.table.num_rows == 2
    assert expected["generated_text"].null_count == 0


def test_a_checkpoint_without_the_head_is_refused(tmp_path):
    transformers.XLMRobertaModel(make_config(is_decoder=True)).save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=r"no weights for .*lm_head.*causal checkpoint"):
            Generator.load(tmp_path, bind(tmp_path))


def test_a_file_of_settings_goes_before_the_usual_ones(loaded, folder, tmp_path, reference):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = {"num_beams": 2, "max_new_tokens": 6, "temperature": 1.5, "eos_token_id": [2, 5], "pad_token_id": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    wanted = bind(tmp_path).settings
    assert (wanted.num_beams, wanted.max_new_tokens, wanted.temperature) == (2, 6, 1.5)
    assert wanted.do_sample
    theirs = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    answers = written(loaded, tmp_path, PROMPTS[:2], do_sample=False)[0]
    assert answers == theirs(PROMPTS[:2], do_sample=False)
