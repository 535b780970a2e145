"""Hidden states, pooled output, logits, losses and gradients against transformers, over random configurations and
both ways of saving.
"""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import xlmr_ray
from xlmr_ray.errors import UserError

TOLERANCE = 1e-5
PAIRS = {
    "XLMRobertaModel": ("last_hidden_state", "pooler_output"),
    "XLMRobertaForMaskedLM": ("logits",),
    "XLMRobertaForSequenceClassification": ("logits",),
}
# Sizes that no kernel likes, one and many token types, a padding id that is not 1.
SHAPES = [
    {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37, "vocab_size": 99, "type_vocab_size": 16},
    {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 64, "vocab_size": 101, "type_vocab_size": 1},
    {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 13, "vocab_size": 64, "pad_token_id": 3},
    {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 200, "vocab_size": 77, "hidden_act": "gelu_new"},
    {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50, "hidden_act": "relu"},
]


def reference(name: str, seed: int = 0, **values: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = transformers.XLMRobertaConfig(
        **{"num_hidden_layers": 2, "max_position_embeddings": 48, "num_labels": 3, "initializer_range": 0.3, **values}
    )
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():  # biases and norms too: fresh ones are zeros and ones, and hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(config: object, lengths: list[int], seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), config.pad_token_id)
    mask = torch.zeros_like(ids)
    types = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, config.vocab_size, (length,), generator=generator)
        types[row, :length] = torch.randint(0, config.type_vocab_size, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    got, wanted = got.detach(), wanted.detach()
    assert got.shape == wanted.shape
    scale = max(1.0, float(wanted.abs().max()))
    assert float((got - wanted).abs().max()) <= TOLERANCE * scale


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape["hidden_size"]))
@pytest.mark.parametrize("name", PAIRS)
def test_saved_by_transformers_loaded_here_and_back(name, shape, implementation, tmp_path):
    theirs = reference(name, **shape)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(xlmr_ray, name).from_pretrained(tmp_path / "theirs", attn_implementation=implementation)
    batch = inputs(theirs.config, [11, 3, 7])
    with torch.no_grad():
        wanted, got = theirs(**batch), ours(**batch)
    real = batch["attention_mask"].bool()
    for field in PAIRS[name]:
        a, b = got[field], wanted[field]
        close(a[real] if a.dim() == 3 else a, b[real] if b.dim() == 3 else b)

    ours.save_pretrained(tmp_path / "ours")
    again, info = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for (key, wanted_tensor), got_tensor in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(wanted_tensor, got_tensor), key
    assert again.config.num_labels == 3


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 6),
    head_dim=st.integers(1, 17),
    layers=st.integers(1, 3),
    intermediate=st.integers(1, 70),
    types=st.integers(1, 16),
    pad=st.integers(0, 3),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_random_configurations(heads, head_dim, layers, intermediate, types, pad, lengths, seed):
    theirs = reference(
        "XLMRobertaModel",
        seed,
        vocab_size=60,
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        type_vocab_size=types,
        pad_token_id=pad,
    )
    config = xlmr_ray.XLMRobertaConfig.from_dict(theirs.config.to_dict())
    ours = xlmr_ray.XLMRobertaModel(config).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in ours.state_dict()})
    batch = inputs(theirs.config, lengths, seed)
    with torch.no_grad():
        wanted = theirs(**batch, output_hidden_states=True, output_attentions=False)
        got = ours(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    for a, b in zip(got.hidden_states, wanted.hidden_states, strict=True):
        close(a[real], b[real])
    close(got.pooler_output, wanted.pooler_output)


def test_attentions_are_the_references_whatever_the_back_end(tmp_path):
    theirs = reference("XLMRobertaModel", **SHAPES[0], attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    batch = inputs(theirs.config, [9, 4])
    with torch.no_grad():
        wanted = theirs(**batch, output_attentions=True).attentions
        for implementation in ("eager", "sdpa"):
            ours = xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path, attn_implementation=implementation)
            got = ours(**batch, output_attentions=True).attentions
            assert len(got) == 2
            for a, b in zip(got, wanted, strict=True):
                close(a, b)


def test_inputs_embeds_and_position_ids(tmp_path):
    theirs = reference("XLMRobertaModel", **SHAPES[1])
    theirs.save_pretrained(tmp_path)
    ours = xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path)
    embeds = torch.randn(2, 6, 36, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(8, 14).expand(2, 6)
    with torch.no_grad():
        close(ours(inputs_embeds=embeds).last_hidden_state, theirs(inputs_embeds=embeds).last_hidden_state)
        ids = torch.arange(10, 22).view(2, 6)
        got = ours(ids, position_ids=positions).last_hidden_state
        close(got, theirs(ids, position_ids=positions).last_hidden_state)


LABELS = {
    "XLMRobertaForMaskedLM": [({}, lambda config: torch.tensor([[5, -100, 7, -100], [-100, 9, 10, 11]]))],
    "XLMRobertaForSequenceClassification": [
        ({"num_labels": 3}, lambda config: torch.tensor([2, 0])),
        ({"num_labels": 1}, lambda config: torch.tensor([0.5, -1.5])),
        ({"num_labels": 3}, lambda config: torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),
        ({"num_labels": 3, "problem_type": "regression"}, lambda config: torch.randn(2, 3)),
    ],
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in LABELS for case in range(len(LABELS[name]))])
def test_losses_and_the_gradient_of_every_parameter(name, case, tmp_path):
    values, make = LABELS[name][case]
    theirs = reference(name, **{**SHAPES[0], **values})
    theirs.save_pretrained(tmp_path)
    ours = getattr(xlmr_ray, name).from_pretrained(tmp_path)
    batch = {**inputs(theirs.config, [4, 4]), "labels": make(theirs.config)}
    wanted, got = theirs(**batch).loss, ours(**batch).loss
    close(got, wanted)
    wanted.backward()
    got.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters(remove_duplicate=False)}
    for key, parameter in ours.named_parameters():
        close(parameter.grad, gradients[key])


def test_outputs_unpack_index_and_name(tmp_path):
    theirs = reference("XLMRobertaForSequenceClassification", **SHAPES[0])
    theirs.save_pretrained(tmp_path)
    ours = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[0, 7, 2]])
    output = ours(ids, labels=torch.tensor([1]))
    loss, logits = output
    assert output[0] is loss
    assert output["logits"] is logits
    assert list(output.keys()) == ["loss", "logits"]
    as_tuple = ours(ids, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1


def test_dropout_acts_in_training_only():
    config = xlmr_ray.XLMRobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        hidden_dropout_prob=0.5,
    )
    model = xlmr_ray.XLMRobertaModel(config)
    ids = torch.arange(5, 25)[None]
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.eval()
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


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


def test_a_text_longer_than_the_positions_is_refused_by_name():
    config = xlmr_ray.XLMRobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        max_position_embeddings=10,
    )
    model = xlmr_ray.XLMRobertaModel(config)
    model(torch.full((1, 8), 5))
    with pytest.raises(UserError, match="9 tokens in a text, the model has positions for 8"):
        model(torch.full((1, 9), 5))


def test_the_inputs_are_one_of_ids_and_embeddings():
    config = xlmr_ray.XLMRobertaConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16
    )
    model = xlmr_ray.XLMRobertaModel(config)
    with pytest.raises(UserError, match="exactly one"):
        model()
    with pytest.raises(UserError, match="XLMRobertaModel: no use for labels"):
        model(torch.tensor([[5]]), labels=torch.tensor([1]))
    with pytest.raises(UserError, match="attention_mask"):
        model(torch.tensor([[5, 6]]), attention_mask=torch.tensor([[[1, 0]]]))


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
