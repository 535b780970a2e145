"""Every class against transformers: all fields of its output, losses and gradients, inputs of every kind, both ways of
saving.
"""

import numpy as np
import pytest
import torch
import transformers

import xlmr_ray
import xlmr_ray.modeling.xlm_roberta
from tests.parity.reference import SHAPES, close, inputs, inputs_for, ours_of, reference, same

# Attention with probabilities is computed eagerly, and a causal head on an encoder sees everything: both say so.
pytestmark = pytest.mark.filterwarnings("ignore:output_attentions", "ignore:XLMRobertaForCausalLM sees")

CLASSES = [
    "XLMRobertaModel",
    "XLMRobertaForCausalLM",
    "XLMRobertaForMaskedLM",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForMultipleChoice",
    "XLMRobertaForTokenClassification",
    "XLMRobertaForQuestionAnswering",
]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["hidden_size"]))
@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_every_class(name, shape, implementation):
    theirs = reference(name, **shape, attn_implementation="eager")
    batch = inputs_for(name, theirs.config, [11, 3, 7])
    real = batch["attention_mask"].bool().flatten(0, -2)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours = ours_of(theirs, implementation)
        same(ours(**batch, **asked), theirs(**batch, **asked), real)
        same(ours(**batch), theirs(**batch), real)
        got, wanted = ours(**batch, return_dict=False), theirs(**batch, return_dict=False)
    assert isinstance(got, tuple)
    assert len(got) == len(wanted)


@pytest.mark.parametrize("values", [SHAPES[1], SHAPES[2]], ids=["tied", "untied"])
@pytest.mark.parametrize("name", CLASSES)
def test_saved_by_transformers_loaded_here_and_back(name, values, tmp_path):
    theirs = reference(name, **values, tie_word_embeddings="pad_token_id" not in values)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(xlmr_ray.modeling.xlm_roberta, name).from_pretrained(tmp_path / "theirs")
    batch = inputs_for(name, theirs.config, [5, 5])
    with torch.no_grad():
        same(ours(**batch), theirs(**batch), torch.ones(2, 5, dtype=torch.bool))

    ours.save_pretrained(tmp_path / "ours")
    again, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for (key, wanted_tensor), got_tensor in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(wanted_tensor, got_tensor), key
    assert again.config.num_labels == theirs.config.num_labels


@pytest.mark.parametrize("name", CLASSES)
def test_inputs_embeds_and_position_ids(name):
    theirs = reference(name, **SHAPES[1])
    ours = ours_of(theirs)
    batch = inputs_for(name, theirs.config, [6, 6])
    shape = batch["input_ids"].shape
    embeds = torch.randn(*shape, 36, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(8, 14).expand(shape)
    real = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        for case in (
            {"inputs_embeds": embeds},
            {"inputs_embeds": embeds, "position_ids": positions},
            {"input_ids": batch["input_ids"], "position_ids": positions},
        ):
            same(ours(**case), theirs(**case), real)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_of_four_dimensions(implementation):
    theirs = reference("XLMRobertaForTokenClassification", **SHAPES[0])  # sdpa: eager there adds booleans as numbers
    ours = ours_of(theirs, implementation)
    ids = inputs(theirs.config, [6, 6])["input_ids"]
    seen = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)) < 0.6
    seen |= torch.eye(6, dtype=torch.bool)
    bias = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(6))
    for mask in (
        seen,
        seen[:, :1],
        seen[:, :1, :1] | torch.tensor([True] + [False] * 5),
        bias,
        bias.masked_fill(~seen[:, :1], torch.finfo(torch.float32).min),
        torch.zeros(2, 1, 6, 6).masked_fill(~seen[:, :1], -torch.inf),
    ):
        with torch.no_grad():
            close(ours(ids, mask).logits, theirs(ids, mask).logits)
    for mask in (torch.ones(2, 6).float(), torch.tensor([[1.0] * 4 + [0.0] * 2] * 2)):
        with torch.no_grad():
            close(ours(ids, mask).logits[:, :4], theirs(ids, mask).logits[:, :4])


LABELS = {
    "XLMRobertaForCausalLM": [({}, {"labels": torch.tensor([[5, -100, 7, 8], [-100, 9, 10, 11]])})],
    "XLMRobertaForMaskedLM": [({}, {"labels": torch.tensor([[5, -100, 7, -100], [-100, 9, 10, 11]])})],
    "XLMRobertaForSequenceClassification": [
        ({"num_labels": 3}, {"labels": torch.tensor([2, 0])}),
        ({"num_labels": 1}, {"labels": torch.tensor([0.5, -1.5])}),
        ({"num_labels": 3}, {"labels": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])}),
        (
            {"num_labels": 3, "problem_type": "regression"},
            {"labels": torch.tensor([[0.0, 1.5, 1.0], [1.0, -2.0, 0.0]])},
        ),
    ],
    "XLMRobertaForMultipleChoice": [({}, {"labels": torch.tensor([2, 0])})],
    "XLMRobertaForTokenClassification": [({}, {"labels": torch.tensor([[0, -100, 2, 1], [-100, 2, 2, 0]])})],
    "XLMRobertaForQuestionAnswering": [
        ({}, {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([3, 2])}),
        ({}, {"start_positions": torch.tensor([[1], [9]]), "end_positions": torch.tensor([[3], [4]])}),
    ],
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in LABELS for case in range(len(LABELS[name]))])
def test_losses_and_the_gradient_of_every_parameter(name, case):
    values, labels = LABELS[name][case]
    theirs = reference(name, **{**SHAPES[0], **values})
    ours = ours_of(theirs)
    batch = {**inputs_for(name, theirs.config, [4, 4]), **labels}
    wanted, got = theirs(**batch), ours(**batch)
    same(got, wanted, torch.ones(2, 4, dtype=torch.bool))
    wanted.loss.backward()
    got.loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters(remove_duplicate=False)}
    for key, parameter in ours.named_parameters():
        if gradients[key] is None:
            assert parameter.grad is None, key
        else:
            close(parameter.grad, gradients[key], key)


def test_dropout_in_training_draws_as_the_references():
    theirs = reference("XLMRobertaForTokenClassification", **SHAPES[0], attn_implementation="eager")
    ours = ours_of(theirs, "eager")
    batch = inputs(theirs.config, [9, 4])
    answers = []
    for model in (ours, theirs):
        torch.manual_seed(11)
        answers.append(model.train()(**batch, output_attentions=True))
    same(answers[0], answers[1], batch["attention_mask"].bool())


def test_half_precision_is_as_near_to_fp32_as_the_references(tmp_path):
    theirs = reference("XLMRobertaModel", **SHAPES[0], initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    batch = inputs(theirs.config, [9, 4])
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        exact = theirs(**batch).last_hidden_state[real]
        for dtype in (torch.bfloat16, torch.float16):
            ours = xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path, dtype=dtype)
            reference_error = (theirs.to(dtype)(**batch).last_hidden_state[real].float() - exact).abs().max()
            error = (ours(**batch).last_hidden_state[real].float() - exact).abs().max()
            assert error <= 1.5 * reference_error + 1e-6
            theirs.to(torch.float32)
            theirs = transformers.XLMRobertaModel.from_pretrained(tmp_path, dtype=torch.float32).eval()


def test_positions_are_the_references():
    from xlmr_ray.model.embeddings import positions_from_embeds, positions_from_ids

    assert positions_from_ids(torch.tensor([[12, 31, 13, 1]]), 1).tolist() == [[2, 3, 4, 1]]
    assert positions_from_ids(torch.tensor([[12, 31]]), 1, past=3).tolist() == [[5, 6]]
    assert positions_from_embeds(torch.zeros(2, 3, 4), 1).tolist() == [[2, 3, 4], [2, 3, 4]]


def test_configuration_defaults_are_the_references():
    theirs = transformers.XLMRobertaConfig().to_dict()
    ours = xlmr_ray.XLMRobertaConfig()
    for name in theirs.keys() & vars(ours).keys() - {"architectures", "dtype", "problem_type"}:
        assert getattr(ours, name) == theirs[name], name
    assert ours.problem_type is None
    assert np.isclose(ours.layer_norm_eps, 1e-12)
