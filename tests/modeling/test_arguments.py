"""Arguments that ordinary scripts pass to `from_pretrained` and `save_pretrained` of models."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import xlmr_ray
from tests.modeling.classes import IDS, SHAPE, make
from xlmr_ray.errors import UserError

SEQ, MLM = "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, and in `inner` a classifier."""
    path = tmp_path_factory.mktemp("arguments") / "mlm"
    make("ForMaskedLM", transformers).save_pretrained(path)
    make("ForSequenceClassification", transformers, num_labels=3).save_pretrained(path / "inner")
    return path


def load(library: Any, name: str, *positional: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(library, name).from_pretrained(*positional, **arguments)


def same(ours: Any, theirs: Any) -> None:
    with torch.no_grad():
        assert torch.allclose(ours(IDS).logits, theirs(IDS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (MLM, {"low_cpu_mem_usage": True, "use_safetensors": True, "weights_only": True, "trust_remote_code": False}),
        (MLM, {"token": None, "revision": "main", "force_download": True, "cache_dir": None, "from_tf": False}),
        (MLM, {"device_map": "cpu", "max_memory": {"cpu": "1GB"}, "offload_folder": "x", "offload_state_dict": False}),
        (SEQ, {"subfolder": "inner"}),
        (SEQ, {"subfolder": "inner", "_fast_init": True, "_commit_hash": None, "dtype": "float32"}),
    ],
)
def test_arguments_of_from_pretrained(folder: Path, name: str, arguments: dict[str, Any]) -> None:
    same(load(xlmr_ray, name, folder, **arguments), load(transformers, name, folder, **arguments))


@pytest.mark.parametrize("kind", ["folder", "theirs", "ours"])
def test_a_configuration_from_elsewhere(folder: Path, kind: str) -> None:
    config: Any = str(folder)
    if kind != "folder":
        library = transformers if kind == "theirs" else xlmr_ray
        config = library.XLMRobertaConfig.from_pretrained(folder, hidden_act="relu")
    theirs = config if kind != "ours" else transformers.XLMRobertaConfig.from_dict(config.to_dict())
    same(load(xlmr_ray, MLM, folder, config=config), load(transformers, MLM, folder, config=theirs))
    with pytest.raises(UserError, match="config: expected an XLMRobertaConfig, or a folder or hub id, got int"):
        load(xlmr_ray, MLM, folder, config=3)


def test_what_was_found(folder: Path, tmp_path: Path) -> None:
    for name, arguments in ((SEQ, {}), (MLM, {}), ("XLMRobertaModel", {})):
        (_, ours), (_, theirs) = (
            load(library, name, folder, output_loading_info=True, **arguments) for library in (xlmr_ray, transformers)
        )
        assert ours.keys() == theirs.keys()
        assert ours["missing_keys"] == {*theirs["missing_keys"]}
        assert ours["mismatched_keys"] == {*theirs["mismatched_keys"]} == set()
    (_, ours), (_, theirs) = (
        load(
            library,
            SEQ,
            folder,
            subfolder="inner",
            num_labels=5,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        for library in (xlmr_ray, transformers)
    )
    assert ours["mismatched_keys"] == {(name, tuple(a), tuple(b)) for name, a, b in theirs["mismatched_keys"]} != set()


def test_a_state_dict_goes_before_the_files(folder: Path) -> None:
    state = {key: tensor * 2 for key, tensor in make("ForMaskedLM").state_dict().items()}
    theirs = make("ForMaskedLM", transformers)
    theirs.load_state_dict(state)
    same(load(xlmr_ray, MLM, folder, state_dict=state), theirs)
    alone = load(xlmr_ray, MLM, None, config=xlmr_ray.XLMRobertaConfig(**SHAPE), state_dict=state)
    same(alone, theirs)
    assert alone.lm_head.decoder.weight is alone.get_input_embeddings().weight
    with pytest.raises(UserError, match="name a checkpoint, or give both config= and state_dict="):
        load(xlmr_ray, MLM, None, state_dict=state)


def test_settings_of_generation_that_are_given(folder: Path) -> None:
    given = transformers.GenerationConfig(num_beams=3, max_new_tokens=4)
    model = load(xlmr_ray, "XLMRobertaForCausalLM", folder, is_decoder=True, generation_config=given)
    assert (model.generation_config.num_beams, model.generation_config.max_new_tokens) == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"from_tf": True}, "from_pretrained: from_tf is not supported: convert the checkpoint to safetensors"),
        ({"from_flax": True}, "from_flax is not supported"),
        ({"gguf_file": "x.gguf"}, "gguf_file is not supported: convert the checkpoint"),
        ({"variant": "fp16"}, "variant is not supported: a folder has one set of weights"),
        ({"use_auth_token": True}, "use_auth_token is not supported: it is called token now"),
        (
            {"max_memory": {0: "lots"}, "device_map": "auto"},
            "max_memory: expected a number of bytes",
        ),
        ({"subfolder": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_what_is_refused(
    folder: Path, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "max_memory" in arguments:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=message) as error:
        load(xlmr_ray, MLM, folder, **arguments)
    assert "\n" not in str(error.value)
