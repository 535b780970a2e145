"""Arguments of from_pretrained and from_config, and the size of the embeddings."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import xlmr_ray
from tests.checkpoint.conftest import SIZES
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.modeling import loading, pretrained

SEQ = "XLMRobertaForSequenceClassification"
MLM = "XLMRobertaForMaskedLM"
IDS = torch.arange(5, 29).reshape(2, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, whose encoder serves the others."""
    return language_model(tmp_path_factory.mktemp("pretrained") / "mlm", tied=True)


def language_model(path: Path, *, tied: bool) -> Path:
    torch.manual_seed(0)
    model = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**SIZES, tie_word_embeddings=tied))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrained") / "seq"
    transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**SIZES)).save_pretrained(path)
    return path


def test_calls_that_users_have(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"no weights for classifier.dense.weight.*: made anew"):
        model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(
            str(folder),
            num_labels=5,
            problem_type="multi_label_classification",
            torch_dtype=torch.bfloat16,
            device_map="auto",
            low_cpu_mem_usage=True,
            use_safetensors=True,
            trust_remote_code=False,
            token=None,
            attn_implementation="eager",
            hidden_dropout_prob=0.0,
        )
    assert model.dtype == torch.bfloat16
    assert model.classifier.out_proj.out_features == model.config.num_labels == 5
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.attn_implementation == "eager"
    assert model.config.hidden_dropout_prob == 0.0
    named = xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(pretrained_model_name_or_path=folder)
    assert named.load_report.missing == ()


def test_a_config_beside(classifier: Path) -> None:
    config = XLMRobertaConfig(**{**SIZES, "id2label": {0: "de", 1: "fr", 2: "ja"}})
    model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(classifier, config=config, dtype="float16")
    assert model.config.labels == ["de", "fr", "ja"]
    assert model.config is not config
    assert model.dtype == torch.float16
    with pytest.raises(UserError, match="give config= or num_labels, not both"):
        xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(classifier, config=config, num_labels=3)


@pytest.mark.parametrize("dtype", ["auto", None, "float32", "torch.bfloat16", torch.float16])
def test_dtypes_by_either_name(folder: Path, dtype: Any) -> None:
    wanted = {"float32": torch.float32, "torch.bfloat16": torch.bfloat16}.get(str(dtype), torch.float32)
    wanted = torch.float16 if dtype is torch.float16 else wanted
    assert xlmr_ray.XLMRobertaModel.from_pretrained(folder, dtype=dtype).dtype == wanted
    assert xlmr_ray.XLMRobertaModel.from_pretrained(folder, torch_dtype=dtype).dtype == wanted
    assert xlmr_ray.XLMRobertaModel.from_config(XLMRobertaConfig(**SIZES), dtype=dtype).dtype == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_label": 3},
            "'num_label' is no argument and no parameter of XLMRobertaConfig, did you mean 'num_labels'?",
        ),
        ({"quantisation_config": 3}, "did you mean 'quantization_config'"),
        ({"xyzzy": 3}, "'xyzzy' is no argument and no parameter of XLMRobertaConfig$"),
        ({"load_in_4bit": True}, "load_in_4bit goes into quantization_config=BitsAndBytesConfig"),
        ({"dtype": "int8"}, "dtype 'int8' is no floating point type of torch"),
        ({"dtype": "half_float"}, "dtype 'half_float' is no floating point type"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "two names of one argument"),
        ({"quantization_config": "nf4"}, "expected a BitsAndBytesConfig or a dictionary, got 'nf4'"),
        ({"attn_implementation": "fast"}, "attn_implementation 'fast' is not known"),
    ],
)
def test_what_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        xlmr_ray.XLMRobertaModel.from_pretrained(folder, **options)
    assert "\n" not in str(error.value)


def test_with_and_without_a_pooler(folder: Path) -> None:
    assert xlmr_ray.XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).pooler is None
    assert xlmr_ray.XLMRobertaModel.from_pretrained(folder).pooler is not None
    with pytest.raises(UserError, match="XLMRobertaForMaskedLM has no add_pooling_layer; XLMRobertaModel has"):
        xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(folder, add_pooling_layer=False)


def test_misspelt_arguments_have_their_names_to_be_near_to() -> None:
    known = set(inspect.signature(pretrained.Pretrained.from_pretrained).parameters)
    assert set(loading.ARGUMENTS) < known


def test_from_config() -> None:
    config = XLMRobertaConfig(**SIZES)
    model = xlmr_ray.XLMRobertaForMaskedLM.from_config(config, attn_implementation="eager", torch_dtype="bfloat16")
    assert model.training
    assert model.dtype == torch.bfloat16
    assert model.config.attn_implementation == "eager" != config.attn_implementation


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("size", "multiple"), [(120, None), (80, None), (101, 64), (None, 64), (None, None)])
def test_resized_embeddings_are_the_reference_s(
    tmp_path: Path, tied: bool, size: int | None, multiple: int | None
) -> None:
    folder = language_model(tmp_path / "mlm", tied=tied)
    theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    ours = xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(folder)
    wanted, got = (model.resize_token_embeddings(size, pad_to_multiple_of=multiple) for model in (theirs, ours))
    assert got.weight.shape == wanted.weight.shape
    assert got is ours.get_input_embeddings()
    assert ours.config.vocab_size == theirs.config.vocab_size == len(got.weight)
    assert (ours.get_output_embeddings().weight is got.weight) == tied
    kept = min(99, len(got.weight))
    with torch.no_grad():
        reference, result = theirs.eval()(IDS).logits, ours(IDS).logits
    assert result.shape == reference.shape
    assert torch.allclose(result[..., :kept], reference[..., :kept], atol=1e-5)
    # New tokens are the mean of the old ones, nearly.
    assert torch.allclose(result[..., kept:], reference[..., kept:], atol=1e-2)
    assert len({tuple(row) for row in got.weight[kept:].tolist()}) == max(0, len(got.weight) - 99)
    ours.save_pretrained(tmp_path / "resized")
    assert xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(tmp_path / "resized").load_report.missing == ()


def test_new_tokens_that_are_to_be_random(folder: Path) -> None:
    torch.manual_seed(1)
    model = xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(folder)
    added = model.resize_token_embeddings(2000, mean_resizing=False).weight[99:].detach()
    assert abs(float(added.std()) - model.config.initializer_range) < 1e-3
    assert not model.lm_head.bias[99:].any()
    with pytest.raises(UserError, match="expected at least one token, got 0"):
        model.resize_token_embeddings(0)


def test_embeddings_of_a_class_without_an_output(folder: Path) -> None:
    model = xlmr_ray.XLMRobertaModel.from_pretrained(folder)
    assert model.base_model is model
    assert model.get_output_embeddings() is None
    model.resize_token_embeddings(100)
    assert model(torch.tensor([[99]])).last_hidden_state.shape == (1, 1, 32)


def test_numbers_and_bytes(folder: Path) -> None:
    ours = xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(folder)
    theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.get_memory_footprint() == theirs.get_memory_footprint(return_buffers=False)
    ours.base_model.requires_grad_(False)
    theirs.base_model.requires_grad_(False)
    assert ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)
