import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from tests.checkpoint.conftest import SIZES, Make, reference, same
from tests.checkpoint.test_load import BARE, MLM, SEQ, load, state
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.modeling import xlm_roberta as modeling


def save(folder: Path, to: Path, kind: str, **options: Any) -> None:
    model, _ = load(folder, kind)
    save_pretrained(model, XLMRobertaConfig.from_dict(read_config(folder)), to, **options)


@pytest.mark.parametrize("kind", [BARE, SEQ, MLM])
@pytest.mark.parametrize("size", ["5GB", 20_000])
def test_transformers_loads_what_we_save(make: Make, tmp_path: Path, kind: str, size: int | str) -> None:
    folder, to = make(kind), tmp_path / "new" / "saved"
    save(folder, to, kind, max_shard_size=size)
    files = sorted(p.name for p in to.iterdir())
    if size == "5GB":
        assert files == ["config.json", "model.safetensors"]
    else:
        assert "model.safetensors.index.json" in files
        assert len(files) > 4
        assert max((to / f).stat().st_size for f in files if f.endswith(".safetensors")) < 25_000
    theirs, info = getattr(transformers, kind).from_pretrained(to, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    same(state(theirs), state(reference(kind)))
    same(state(load(to, kind)[0]), state(reference(kind)))
    ids = torch.randint(5, 99, (2, 9))
    assert torch.equal(theirs(ids)[0], reference(kind)(ids)[0])


def test_the_tensors_written_are_those_that_transformers_writes(make: Make, tmp_path: Path) -> None:
    folder = make(MLM)
    save(folder, tmp_path / "saved", MLM)
    with (
        safe_open(folder / "model.safetensors", "pt") as theirs,
        safe_open(tmp_path / "saved/model.safetensors", "pt") as ours,
    ):
        assert sorted(ours.keys()) == sorted(theirs.keys())
        assert ours.metadata() == {"format": "pt"}


def test_fused_projections_are_written_as_three(make: Make, tmp_path: Path) -> None:
    folder = make(SEQ)
    model, _ = load(folder, SEQ)
    model.roberta.encoder.fuse()
    save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "saved")
    same(state(load(tmp_path / "saved", SEQ)[0]), state(reference(SEQ)))


def test_half_precision_stays(make: Make, tmp_path: Path) -> None:
    model, _ = load(make(), dtype=torch.bfloat16)
    save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "saved")
    again, report = load(tmp_path / "saved")
    assert report.dtype_on_disk == torch.bfloat16
    same(state(again), state(model))


def test_saving_into_a_folder_that_exists(make: Make, tmp_path: Path) -> None:
    folder = make(SEQ)
    to = tmp_path / "saved"
    save(folder, to, SEQ, max_shard_size=20_000)
    (to / "tokenizer.json").write_text("{}")
    save(make(SEQ, seed=1, folder="other"), to, SEQ)
    assert sorted(p.name for p in to.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    same(state(load(to, SEQ)[0]), state(reference(SEQ, seed=1)))
    save(folder, to, SEQ, max_shard_size=20_000)
    assert not (to / "model.safetensors").exists()
    same(state(load(to, SEQ)[0]), state(reference(SEQ)))
    index = json.loads((to / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in to.glob("*.safetensors")}


def test_a_failed_save_leaves_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    model, _ = load(folder)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("xlmr_ray.checkpoint.save.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "saved")
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, XLMRobertaConfig(**SIZES), folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    same(state(load(folder)[0]), state(reference()))


def test_errors(make: Make, tmp_path: Path) -> None:
    model, _ = load(make())
    with pytest.raises(UserError, match="max_shard_size '5 zillion'"):
        save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "saved", max_shard_size="5 zillion")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, where a folder is to be written"):
        save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "file")


def test_a_model_from_nothing_round_trips(tmp_path: Path) -> None:
    model = modeling.XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES))
    save_pretrained(model, model.config, tmp_path / "saved")
    same(state(load(tmp_path / "saved", MLM)[0]), state(model))


def test_the_weights_may_be_read_by_whom_the_configuration_may(tmp_path):
    config = XLMRobertaConfig(
        vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
    )
    modeling.XLMRobertaModel(config).save_pretrained(tmp_path / "model")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
