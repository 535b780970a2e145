import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.conftest import SIZES, Make
from tests.checkpoint.test_load import BARE, MLM, SEQ, load
from xlmr_ray.checkpoint import digest
from xlmr_ray.checkpoint.digest import encoder_digest, weights_digest
from xlmr_ray.checkpoint.save import save_pretrained
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError


def test_the_same_tensors_have_the_same_digest(make: Make, tmp_path: Path) -> None:
    folder = make(SEQ)
    first = weights_digest(folder)
    assert len(first) == 64
    model, _ = load(folder, SEQ)
    save_pretrained(model, XLMRobertaConfig(**SIZES), tmp_path / "shards", max_shard_size=20_000)
    assert weights_digest(tmp_path / "shards") == first
    assert weights_digest(make(SEQ, folder="bin", as_bin=True)) == first
    assert weights_digest(make(SEQ, folder="prefix", rename=lambda n: n.removeprefix("roberta."))) == first


def test_any_other_tensors_have_another(make: Make) -> None:
    folder = make(SEQ)
    first = weights_digest(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, changed in {
        "classifier.out_proj.bias": tensors["classifier.out_proj.bias"].flip(0),
        "classifier.dense.weight": tensors["classifier.dense.weight"].T.contiguous(),
        "classifier.dense.bias": tensors["classifier.dense.bias"].reshape(32, 1),
        "roberta.embeddings.LayerNorm.bias": tensors["roberta.embeddings.LayerNorm.bias"].half(),
    }.items():
        save_file(tensors | {name: changed}, file)
        assert weights_digest(folder) != first, name
    swapped = {**tensors, "classifier.dense.bias": tensors["roberta.embeddings.LayerNorm.bias"]}
    swapped["roberta.embeddings.LayerNorm.bias"] = tensors["classifier.dense.bias"]
    save_file(swapped, file)
    assert weights_digest(folder) != first
    renamed = {name.replace("classifier.out_proj", "classifier.out_proj_"): t for name, t in tensors.items()}
    save_file(renamed, file)
    assert weights_digest(folder) != first
    save_file(tensors, file)
    assert weights_digest(folder) == first


def test_checkpoints_that_share_an_encoder(make: Make) -> None:
    def frozen(kind: str, folder: str, seed: int) -> Path:
        path = make(kind, folder=folder, seed=seed)
        bare = load_file(make(BARE, folder=f"{folder}-encoder") / "model.safetensors")
        own = load_file(path / "model.safetensors")
        save_file(own | {f"roberta.{n}": t for n, t in bare.items() if "pooler" not in n}, path / "model.safetensors")
        return path

    one, other = frozen(SEQ, "one", 1), frozen(MLM, "other", 2)
    assert encoder_digest(one) == encoder_digest(other) == encoder_digest(make(BARE, folder="bare"))
    assert weights_digest(one) != weights_digest(other)
    assert encoder_digest(make(SEQ, folder="third", seed=3)) != encoder_digest(one)


def test_large_tensors_are_hashed_to_their_last_byte(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "PIECE", 1000)
    folder = make()
    file = folder / "model.safetensors"
    first = weights_digest(folder)
    tensors = load_file(file)
    tensors["embeddings.word_embeddings.weight"][-1, -1] += 1
    save_file(tensors, file)
    assert weights_digest(folder) != first


def test_it_is_remembered_until_a_file_changes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    first = weights_digest(folder)
    hashed = []
    real = digest._hashes
    monkeypatch.setattr(digest, "_hashes", lambda *args: hashed.append(1) or real(*args))
    assert weights_digest(folder) == first
    assert not hashed
    os.utime(folder / "model.safetensors", (1, 1))
    assert weights_digest(folder) == first
    assert hashed == [1]


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not an XLM-R checkpoint"):
        weights_digest(tmp_path)
