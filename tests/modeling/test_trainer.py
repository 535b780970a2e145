"""Transformers' own `Trainer`, and `accelerate`, over our classes: what they do to transformers' they do to ours."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load_file
from torch.utils.data import Dataset

import xlmr_ray
from tests.modeling.classes import CLASSES, inputs, make
from xlmr_ray.errors import UserError

TRAINED = CLASSES[1:]


class Examples(Dataset[dict[str, Any]]):
    """Eight, of two lengths, each with what the class of that name is trained on."""

    def __init__(self, name: str) -> None:
        ids = torch.randint(4, 40, (8, 6), generator=torch.Generator().manual_seed(1))
        self.rows: list[dict[str, Any]] = [{"input_ids": row, "attention_mask": torch.ones(6).long()} for row in ids]
        for i, row in enumerate(self.rows):
            if name == "ForMultipleChoice":
                row |= {key: torch.stack([x, x.flip(0)]) for key, x in row.items()}
            if name == "ForQuestionAnswering":
                row |= {"start_positions": i % 3, "end_positions": i % 3 + 2}
            elif name.endswith("LM"):
                row["labels"] = row["input_ids"].clone()
                row["labels"][: i % 4] = -100  # batches differ in how many tokens count
            else:
                row["labels"] = row["input_ids"] % 2 if name == "ForTokenClassification" else i % 2

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def pair(name: str, **values: Any) -> list[Any]:
    """The same model of both libraries, without dropout: the two draw it in other places."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **values}
    theirs = make(name, transformers, **still)
    ours = make(name, xlmr_ray, **still)
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


def trainer(model: Any, name: str, folder: Path, **arguments: Any) -> transformers.Trainer:
    settings: dict[str, Any] = {
        "max_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.5,
        "optim": "sgd",  # Adam makes steps of the rounding of gradients that are 0
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_steps": 1,
        **arguments,
    }
    examples = Examples(name)
    return transformers.Trainer(
        model, transformers.TrainingArguments(str(folder), **settings), train_dataset=examples, eval_dataset=examples
    )


def losses(trained: transformers.Trainer) -> list[list[float]]:
    wanted = ("loss", "grad_norm", "total_flos", "eval_loss", "train_loss")
    return [[entry[key] for key in wanted if key in entry] for entry in trained.state.log_history]


def same_weights(ours: Any, theirs: Any) -> None:
    wanted, got = theirs.state_dict(), ours.state_dict()
    assert got.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.allclose(got[key], tensor, atol=1e-5), key


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_of_trainer_and_its_resumption(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    runs = [trainer(model, name, tmp_path / side) for side, model in (("theirs", theirs), ("ours", ours))]
    for run in runs:
        run.train()
        run.evaluate()
    assert losses(runs[1]) == [pytest.approx(one, abs=1e-5) for one in losses(runs[0])]
    same_weights(ours, theirs)
    predictions = [run.predict(Examples(name)).predictions for run in runs]
    for got, wanted in zip(*(p if isinstance(p, tuple) else (p,) for p in reversed(predictions)), strict=True):
        assert torch.allclose(torch.tensor(got), torch.tensor(wanted), atol=1e-5)

    written = tmp_path / "ours" / "checkpoint-2"
    assert {path.name for path in (tmp_path / "theirs" / "checkpoint-2").iterdir()} <= {
        path.name for path in written.iterdir()
    }
    assert load_file(written / "model.safetensors").keys() == (
        load_file(tmp_path / "theirs" / "checkpoint-2" / "model.safetensors").keys()
    )
    for library in (xlmr_ray, transformers):
        same_weights(getattr(library, f"XLMRoberta{name}").from_pretrained(written), theirs)

    # Two steps, stopped after the first one and taken up from what each library wrote.
    resumed = make(name, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    run = trainer(resumed, name, tmp_path / "resumed")
    run.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-1"))
    same_weights(resumed, theirs)
    assert run.state.global_step == 2


def test_activations_computed_again_and_texts_padded_by_our_tokenizer(tmp_path: Path, mini: Path) -> None:
    """As scripts have it: the tokenizer goes to Trainer, which pads with it and aligns the special tokens."""
    texts = ["Alle Menschen", "sind frei", "und gleich an Würde und Rechten", "geboren", "all", "human beings"] * 2
    runs = []
    for library, side in ((transformers, "theirs"), (xlmr_ray, "ours")):
        tokenizer = library.XLMRobertaTokenizer.from_pretrained(mini)
        model = pair("ForSequenceClassification", vocab_size=len(tokenizer))[side == "ours"]
        rows = [{**tokenizer(text), "label": i % 2} for i, text in enumerate(texts)]
        arguments = transformers.TrainingArguments(
            str(tmp_path / side),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.5,
            optim="sgd",
            gradient_checkpointing=True,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        run = transformers.Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
        run.train()
        assert model.is_gradient_checkpointing
        runs.append(run)
    assert losses(runs[1]) == [pytest.approx(one, abs=1e-5) for one in losses(runs[0])]
    same_weights(runs[1].model, runs[0].model)
    assert isinstance(runs[1].data_collator, transformers.DataCollatorWithPadding)
    saved = xlmr_ray.XLMRobertaTokenizer.from_pretrained(tmp_path / "ours" / "checkpoint-3")
    assert saved(texts).input_ids == tokenizer(texts).input_ids


@pytest.mark.parametrize("name", ["Model", "ForCausalLM"])
@pytest.mark.parametrize("how", [{}, {"every_n_layers": 2}, {"offload": True}])
def test_gradients_are_those_of_kept_activations(name: str, how: dict[str, Any]) -> None:
    model = make(name).train()
    given = inputs(name)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        first = next(iter(model(**given).values()))
        assert first.requires_grad
        first.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    calls = []
    layers = model.base_model.encoder.layer
    for layer in layers:
        layer.intermediate.register_forward_hook(lambda *_: calls.append(1))
    kept = gradients()
    model.activation_checkpointing_enable(**how)
    again = gradients()
    assert len(calls) == len(layers) + len(layers) + -(-len(layers) // how.get("every_n_layers", 1))
    for a, b in zip(again, kept, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    configured = make(name, gradient_checkpointing=True)
    assert pickle.loads(pickle.dumps(configured)).is_activation_checkpointing


def test_inputs_have_gradients_where_the_weights_have_none() -> None:
    model = make("ForMaskedLM").requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**inputs("ForMaskedLM")).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(**inputs("ForMaskedLM")).logits.requires_grad


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_numbers_of_parameters(name: str, exclude: bool) -> None:
    theirs, ours = pair(name)
    wanted = theirs.num_parameters(exclude_embeddings=exclude)
    assert ours.num_parameters(exclude_embeddings=exclude) == wanted


def test_accelerate_saves_a_model(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = make("ForMaskedLM")
    prepared = accelerator.prepare(model)
    accelerator.unwrap_model(prepared).save_pretrained(
        tmp_path / "model",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(prepared),
        safe_serialization=True,
    )
    for library in (xlmr_ray, transformers):
        same_weights(library.XLMRobertaForMaskedLM.from_pretrained(tmp_path / "model"), model)
    accelerator.save_model(prepared, tmp_path / "weights")
    assert load_file(tmp_path / "weights" / "model.safetensors").keys() <= model.state_dict().keys()
    other = make("ForMaskedLM", initializer_range=0.5)
    accelerate.load_checkpoint_in_model(other, tmp_path / "model", strict=False)
    same_weights(other, model)


def test_what_a_save_takes(tmp_path: Path) -> None:
    model = make("ForMaskedLM")
    state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    model.save_pretrained(save_directory=tmp_path / "added", state_dict=state)
    assert torch.equal(
        xlmr_ray.XLMRobertaForMaskedLM.from_pretrained(tmp_path / "added").lm_head.bias, state["lm_head.bias"]
    )
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match=r"save_pretrained: variant is not supported: a folder has one set of weights"):
        model.save_pretrained(tmp_path / "other", variant="fp16")
    with pytest.raises(UserError, match="save_pretrained: no argument max_shards"):
        model.save_pretrained(tmp_path / "other", max_shards=3)


def test_a_push_writes_a_folder_and_uploads_it(tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    def upload(self: Any, *, repo_id: str, folder_path: str, **named: Any) -> Any:
        sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **named: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = make("ForCausalLM")
    assert model.push_to_hub("decoder", commit_message="x", private=True) == "https://hub/me/decoder"
    assert sent["me/decoder"] == {"config.json", "generation_config.json", "model.safetensors"}
    xlmr_ray.XLMRobertaTokenizer.from_pretrained(mini).push_to_hub("words")
    assert "tokenizer.json" in sent["me/words"]
    model.save_pretrained(tmp_path / "folder", push_to_hub=True)
    assert "model.safetensors" in sent["me/folder"]


def test_ours_pass_as_theirs_and_stay_ours(mini: Path) -> None:
    model, tokenizer = make("ForMaskedLM"), xlmr_ray.XLMRobertaTokenizer.from_pretrained(mini)
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
    assert not isinstance(model, transformers.XLMRobertaForMaskedLM)
    for one in (model, tokenizer):
        for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one):
            assert type(twin) is type(one)
    assert type(model.__class__(model.config)) is type(model)
    wrapped = type("Wrapped", (type(model),), {})
    model.__class__ = wrapped  # as torch's fully_shard does
    assert type(model) is wrapped
