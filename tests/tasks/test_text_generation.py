"""What `text-generation` makes of its options and prompts; the texts themselves are tests of the generator."""

from pathlib import Path

import pyarrow as pa
import pytest

from xlmr_ray import UserError, XLMRobertaConfig, XLMRobertaTokenizer
from xlmr_ray.tasks.text_generation import TextGeneration

CONFIG = XLMRobertaConfig(max_position_embeddings=66, is_decoder=True)


def bind(**options) -> TextGeneration:
    return TextGeneration.bind(Path("nowhere"), CONFIG, options)


@pytest.fixture(scope="module")
def tokenizer(mini):
    return XLMRobertaTokenizer.from_pretrained(mini)


def test_usual_settings_are_the_references_pipelines():
    settings = bind().settings
    assert settings.do_sample
    assert (settings.temperature, settings.top_k, settings.top_p, settings.num_beams) == (0.7, 50, 1.0, 1)
    # 256 where the model has as many positions twice, which this one has not: 67 tokens, the last without a position.
    assert settings.max_new_tokens == 33
    assert TextGeneration.bind(Path("nowhere"), XLMRobertaConfig(), {}).settings.max_new_tokens == 256
    assert bind(max_length=20).settings.max_new_tokens == 10
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, 2, 1)


def test_a_long_prompt_keeps_its_end_and_is_flagged(tokenizer):
    long = "one two three four five six seven eight nine ten " * 9
    whole = tokenizer(long)["input_ids"]
    encoded = bind(max_new_tokens=7).prepare(pa.table({"text": [long, "one"]}), tokenizer)
    assert encoded["truncated"].to_pylist() == [True, False]
    assert encoded["input_ids"].to_pylist() == [whole[-60:], tokenizer("one")["input_ids"]]
    assert encoded["prompt"].to_pylist() == [long, "one"]
    encoded = bind(max_new_tokens=7, positions="forward").prepare(pa.table({"text": [long]}), tokenizer)
    assert encoded["input_ids"].to_pylist() == [whole[-58:]]
    encoded = bind(max_new_tokens=7, max_length=10).prepare(pa.table({"text": [long]}), tokenizer)
    assert encoded["input_ids"].to_pylist() == [whole[-3:]]


def test_prompts_with_a_prefix_without_tokens_and_none_at_all(tokenizer):
    task = bind(prefix="one ", return_full_text=False)
    encoded = task.prepare(pa.table({"text": ["two"]}), tokenizer)
    assert encoded["input_ids"].to_pylist() == [tokenizer("one two")["input_ids"]]
    assert encoded.column_names == ["input_ids", "truncated"]
    bare = bind(add_special_tokens=False).prepare(pa.table({"text": ["", "two"]}), tokenizer)
    assert bare["input_ids"].to_pylist() == [[0], tokenizer("two", add_special_tokens=False)["input_ids"]]
    none = task.prepare(pa.table({"text": pa.array([], pa.string())}), tokenizer)
    assert none.num_rows == 0
    assert task.postprocess([], none, tokenizer) == task.schema.empty_table()


@pytest.mark.parametrize("several", [False, True])
def test_output_tables(tokenizer, several):
    task = bind(num_return_sequences=2) if several else bind()
    encoded = task.prepare(pa.table({"text": ["one"]}), tokenizer)
    ids = tokenizer(" three four", add_special_tokens=False)["input_ids"]
    texts = [[[*ids, 2], ids] if several else [[*ids, 2]]]
    table = task.postprocess(texts, encoded, tokenizer)
    assert table.schema == task.schema
    first = {"generated_text": "onethree four", "tokens": len(ids) + 1}
    if several:
        assert table["texts"].to_pylist() == [[first, {**first, "tokens": len(ids)}]]
        assert task.answers(table.slice(0, 1)) == [[{"generated_text": "onethree four"}] * 2]
    else:
        assert table.to_pylist() == [{**first, "truncated": False}]
        assert task.answers(table.slice(0, 1)) == [[{"generated_text": "onethree four"}]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 on"),
        ({"max_new_tokens": 67}, "max_new_tokens 67 leaves no room for a prompt: prompt and text have 67 tokens"),
        ({"max_length": 68}, "max_length 68 is more than the 67 tokens"),
        ({"max_length": 66, "positions": "forward"}, "max_length 66 is more than the 65 tokens"),
        ({"positions": "backwards"}, "positions 'backwards' is none of generate, forward"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"do_sample": False, "num_return_sequences": 2}, "would be equal"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"max_tokens": 1}, "no option 'max_tokens'"),
    ],
    ids=str,
)
def test_errors_say_what_to_do(options, words):
    with pytest.raises(UserError, match=words) as caught:
        bind(**options)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_less_room(mini):
    short = XLMRobertaTokenizer.from_pretrained(mini, model_max_length=10)
    with pytest.raises(UserError, match="the tokenizer takes 10 tokens"):
        bind(max_new_tokens=10).prepare(pa.table({"text": ["one"]}), short)
