"""What sentence-transformers folders ask for beyond pooling: sentence-transformers' own vectors are the oracle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from tests.models import save_e5_layout
from xlmr_ray import UserError, pipeline

TEXTS = ["A quick test", "İstanbul'da IĞDIR ΟΔΟΣ ǅ ẞ", "<mask> <MASK> 你好", "word " * 80]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_e5_layout(tmp_path)


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def add_module(folder: Path, kind: str, path: str, place: int | None = None) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(len(modules) if place is None else place, {"name": path, "path": path, "type": kind})
    write(folder, "modules.json", [{**module, "idx": index} for index, module in enumerate(modules)])


def remove_module(folder: Path, place: int) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    del modules[place]
    write(folder, "modules.json", modules)


def theirs(folder: Path, **options: Any) -> Any:
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS, **options)


def ours(folder: Path, **options: Any) -> Any:
    return np.array(pipeline("embedding", model=folder, **options)(TEXTS))


def equal(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5


@pytest.mark.parametrize("dimensions", [1, 7, 48, 99])
def test_the_folders_truncation(folder: Path, dimensions: int) -> None:
    """It cuts what was normalized before; more than the model has is the model's width."""
    write(folder, "config_sentence_transformers.json", {"truncate_dim": dimensions})
    wanted = theirs(folder)
    equal(ours(folder), wanted)
    assert dimensions >= 48 or np.linalg.norm(wanted[0]) < 0.9
    equal(ours(folder, normalize=True), theirs(folder, normalize_embeddings=True))
    short = ours(folder, long="windows", max_length=64)
    equal(short[:3], wanted[:3])  # of texts with one window
    remove_module(folder, 2)
    equal(ours(folder), theirs(folder))


def test_dimensions_that_are_asked_for(folder: Path) -> None:
    """Normalized again, as OpenAI's are and sentence-transformers' where both are asked for."""
    equal(ours(folder, dimensions=7), theirs(folder, truncate_dim=7, normalize_embeddings=True))
    write(folder, "config_sentence_transformers.json", {"truncate_dim": 20})
    equal(ours(folder, dimensions=7), theirs(folder, truncate_dim=7, normalize_embeddings=True))


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", True, [8]])
def test_truncation_that_is_no_number_of_dimensions(folder: Path, value: Any) -> None:
    write(folder, "config_sentence_transformers.json", {"truncate_dim": value})
    with pytest.raises(UserError, match=r"transformers.json: truncate_dim: got .*, expected a whole number from 1 on"):
        pipeline("embedding", model=folder)


def test_normalized_tokens(folder: Path) -> None:
    """Behind the pooling they have no effect; before it they would, and are refused."""
    write(folder, "2_Normalize/config.json", {"module_input_name": "token_embeddings"})
    wanted = theirs(folder)
    assert abs(np.linalg.norm(wanted[0]) - 1) > 0.1
    equal(ours(folder), wanted)
    write(folder, "2_Normalize/config.json", {"module_output_name": "another"})
    equal(ours(folder), theirs(folder))
    write(
        folder,
        "2_Normalize/config.json",
        {"module_input_name": "token_embeddings", "module_output_name": "sentence_embedding"},
    )
    with pytest.raises(UserError, match="module_input_name 'token_embeddings' for sentence_embedding is not supported"):
        ours(folder)
    write(folder, "2_Normalize/config.json", {"module_input_name": "token_embeddings"})
    remove_module(folder, 2)
    add_module(folder, "sentence_transformers.models.Normalize", "2_Normalize", 1)
    with pytest.raises(UserError, match=r"got modules Transformer, Normalize, Pooling, expected"):
        ours(folder)


def test_small_letters(folder: Path) -> None:
    capitals = theirs(folder)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True})
    wanted = theirs(folder)
    assert np.abs(wanted[1] - capitals[1]).max() > 1e-3
    equal(ours(folder), wanted)
    pairs = [{"text": text, "text_pair": TEXTS[0]} for text in TEXTS]
    equal(np.array(pipeline("sentence-similarity", model=folder)(pairs)), wanted @ wanted[0])
    (passages,) = (
        pipeline("passage-embedding", model=folder, passage_tokens=64).table(TEXTS[1])["embeddings"].to_pylist()
    )
    assert len(passages) == 1


@pytest.mark.parametrize("kind", ["my_pooling.Pooling", "custom_st.sentence_transformers.Pooling", "Pooling"])
def test_modules_of_other_code(folder: Path, kind: str) -> None:
    remove_module(folder, 1)
    add_module(folder, kind, "1_Pooling", 1)
    with pytest.raises(UserError, match=f"modules.json: module {kind} is other code than sentence-transformers', and"):
        pipeline("embedding", model=folder)


@pytest.mark.parametrize("task", ["embedding", "feature-extraction"])
def test_an_adapter_beside_a_whole_model(folder: Path, task: str) -> None:
    write(folder, "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"adapter_config.json beside model.safetensors: .* merge it into its model"):
        pipeline(task, model=folder)


def test_the_model_in_a_folder_inside(folder: Path, tmp_path: Path) -> None:
    """As sentence-transformers saved until 2020, and reads to this day."""
    inner = tmp_path / "older" / "0_Transformer"
    shutil.copytree(folder, inner, ignore=shutil.ignore_patterns("modules.json", "1_*", "2_*", "older"))
    for name in ("1_Pooling", "2_Normalize"):
        shutil.copytree(folder / name, tmp_path / "older" / name)
    modules = json.loads((folder / "modules.json").read_text())
    write(tmp_path / "older", "modules.json", [modules[0] | {"path": "0_Transformer"}, *modules[1:]])
    equal(ours(tmp_path / "older"), theirs(tmp_path / "older"))
