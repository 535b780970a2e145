"""Token ids beyond the embeddings: one line that names the id, wherever they come from, and other texts go on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

import xlmr_ray
from tests.models import add_tokenizer, make_config
from xlmr_ray import UserError, XLMRobertaConfig, XLMRobertaTokenizer, pipeline
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.pipeline import columns
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.packed_batch import pack
from xlmr_ray.serve.limits import check_encoded
from xlmr_ray.serve.requests import Invalid
from xlmr_ray.serve.settings import LimitsSection
from xlmr_ray.tasks.registry import task_class

TEXTS = ["a text", "a <new> one", "another"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has got a token that the model has not."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(2)
    transformers.XLMRobertaForCausalLM(make_config(is_decoder=True)).save_pretrained(folder)
    tokenizer = XLMRobertaTokenizer.from_pretrained(add_tokenizer(folder))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["feature-extraction", "perplexity", "text-generation"])
def test_the_text_fails_and_the_others_do_not(folder: Path, task: str) -> None:
    size = make_config().vocab_size
    message = f"token id {size} is none of the model's, which are 0 to {size - 1}"
    pipe = pipeline(task, model=folder)
    with pytest.raises(UserError, match=f"^text 1: token_out_of_range: {message}$"):
        pipe(TEXTS)
    encoded = pipe.task.prepare(columns(TEXTS, pipe.task.roles), pipe.tokenizer)
    output = pipe.engine.outputs([encoded])[0]
    assert output.failed == {1: ("token_out_of_range", message)}
    assert output.table.equals(pipe.table([TEXTS[0], TEXTS[2]]))
    with pytest.raises(Invalid, match=message) as raised:  # the service, before it waits in a queue
        check_encoded(pipe.task, encoded, LimitsSection(), pipe.config, "inputs")
    assert raised.value.field == "inputs.1"


def test_the_classes_and_the_last_door_before_the_device(folder: Path) -> None:
    model = xlmr_ray.XLMRobertaModel.from_pretrained(folder)
    size = model.config.vocab_size
    for wrong in (size, -1):
        with pytest.raises(UserError, match=f"input_ids: got .*{wrong}.*, expected 0 to {size - 1}"):
            model(torch.tensor([[0, wrong, 2]]))
        with pytest.raises(UserError, match=f"token ids: got .*{wrong}.*, the model's are 0 to {size - 1}"):
            pack(np.array([0, wrong, 2], np.int32), np.array([0, 3]), np.array([0]), model.config)


def test_ids_handed_to_an_engine(folder: Path) -> None:
    config = XLMRobertaConfig.from_pretrained(folder)
    engine = Engine.load(
        folder, [task_class("feature-extraction").bind(folder, config, {})], EngineSettings(device="cpu")
    )
    ids = pa.array([[0, 5, 2], [0, 2**31 - 1, 2], [], [0, -7, 2]], pa.list_(pa.int32()))
    assert {place: code for place, (code, _) in engine.run(ids).failed.items()} == {
        1: "token_out_of_range",
        2: "no_tokens",
        3: "token_out_of_range",
    }
