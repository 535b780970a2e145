"""Models and outputs that torch takes apart: exported, traced, gathered, copied."""

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import xlmr_ray
from tests.modeling.classes import CLASSES, inputs, make
from xlmr_ray.model import outputs


def same(got: Any, wanted: Any) -> None:
    pairs = list(zip(tree_leaves(got), tree_leaves(wanted), strict=True))
    assert pairs
    for a, b in pairs:
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_torch_export(name: str) -> None:
    model = make(name)
    given = inputs(name)
    axes = {key: {x.dim() - 1: torch.export.Dim.AUTO} for key, x in given.items()}
    exported = torch.export.export(model, (), kwargs=given, dynamic_shapes=axes, strict=False).module()
    longer = {key: torch.cat([x, x[..., 1:]], -1) for key, x in given.items()}
    for batch in (given, longer):
        output = exported(**batch)
        same(output, model(**batch))
        assert type(output) is type(model(**batch))


@pytest.mark.parametrize("name", ["ForSequenceClassification", "ForCausalLM"])
def test_torch_export_of_the_code(name: str) -> None:
    model, given = make(name), inputs(name)
    same(torch.export.export(model, (), kwargs=given, strict=True).module()(**given), model(**given))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_holds_for_other_inputs(name: str) -> None:
    model, given = make(name, use_cache=False), inputs(name)
    mask = given["attention_mask"]
    # What is traced has no padding; what it is called with has.
    example = {"input_ids": given["input_ids"], "attention_mask": torch.ones_like(mask)}
    traced = torch.jit.trace(model, example_kwarg_inputs=example, strict=False, check_trace=False)
    same(list(traced(**given).values()), model(**given))
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    same(list(torch.jit.load(buffer)(**given).values()), model(**given))


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["ForSequenceClassification", "ForMaskedLM"])
@pytest.mark.filterwarnings("ignore")
def test_onnx(name: str, dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, given = make(name), inputs(name)
    path = tmp_path / "model.onnx"
    how: dict[str, Any] = (
        {"dynamic_shapes": {key: {1: torch.export.Dim.DYNAMIC} for key in given}}
        if dynamo
        else {"dynamic_axes": {key: {1: "length"} for key in given}}
    )
    torch.onnx.export(
        model, (), str(path), kwargs=given, input_names=[*given], output_names=["logits"], dynamo=dynamo, **how
    )
    onnx.checker.check_model(str(path))
    evaluator = ReferenceEvaluator(str(path))
    for batch in (given, {key: torch.cat([x, x[:, :1]], 1) for key, x in given.items()}):
        (got,) = evaluator.run(["logits"], {key: x.numpy() for key, x in batch.items()})
        same(torch.from_numpy(got), model(**batch).logits.detach())


@pytest.mark.parametrize("name", CLASSES)
def test_pickled_copied_and_saved_models(name: str) -> None:
    model, given = make(name), inputs(name)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        torch.load(buffer, weights_only=False),
    ):
        same(again(**given), model(**given))
        assert again.config == model.config
        if model.get_output_embeddings() is not None:
            assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_outputs_are_those_of_transformers() -> None:
    """The same entries in the same order, in all the ways that they are taken apart and made anew."""
    ids = torch.tensor([[0, 5, 6, 2]])
    for name in CLASSES:
        ours, theirs = (make(name, library, attn_implementation="eager") for library in (xlmr_ray, transformers))
        given = {"input_ids": ids[None]} if name == "ForMultipleChoice" else {"input_ids": ids}
        got, wanted = (m(**given, output_hidden_states=True, output_attentions=True) for m in (ours, theirs))
        assert list(got) == list(wanted), name
        assert len(got) == len(wanted)
        leaves, spec = tree_flatten(got)
        assert isinstance(tree_unflatten(leaves, spec), type(got))
        assert list(tree_map(lambda x: x * 2, got)) == list(wanted)
        # What DataParallel makes of the outputs of its replicas, and accelerate of one.
        assert list(type(got)((key, got[key]) for key in got)) == list(got)
        assert type(got)(dict(got.items()))[0] is got[0]
        assert list(pickle.loads(pickle.dumps(tree_map(torch.Tensor.detach, got)))) == list(got)


def test_an_entry_that_is_set_taken_away_and_new() -> None:
    output = outputs.SequenceClassifierOutput(logits=torch.zeros(1, 2))
    assert len(output) == 1
    output.loss = torch.tensor(1.0)
    output["own"] = 3
    assert (list(output), output.own) == (["logits", "loss", "own"], 3)
    output.loss = None
    assert output.loss is None
    assert list(output) == ["logits", "own"]
    assert isinstance(output, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.copy(output).own == 3
