"""How the classes are called: arguments by position and by name, what is refused, and logits that nobody reads."""

import inspect
import pickle
import warnings

import pytest
import torch
import transformers

import xlmr_ray
from xlmr_ray.errors import UserError
from xlmr_ray.modeling import xlm_roberta as modeling
from xlmr_ray.modeling.arguments import OWN

CLASSES = [
    modeling.XLMRobertaModel,
    modeling.XLMRobertaForCausalLM,
    modeling.XLMRobertaForMaskedLM,
    modeling.XLMRobertaForSequenceClassification,
    modeling.XLMRobertaForMultipleChoice,
    modeling.XLMRobertaForTokenClassification,
    modeling.XLMRobertaForQuestionAnswering,
]
IDS = torch.tensor([[0, 7, 9, 2], [0, 8, 5, 2]])


def config(**values: object) -> xlmr_ray.XLMRobertaConfig:
    shape = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    return xlmr_ray.XLMRobertaConfig(**{**shape, "intermediate_size": 16, "max_position_embeddings": 12, **values})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_arguments_come_in_the_references_order(cls):
    theirs = inspect.signature(getattr(transformers, cls.__name__).forward).parameters
    ours = inspect.signature(cls.forward).parameters
    by_position = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == [name for name in theirs if name != "kwargs"]
    for name in by_position[1:]:
        assert ours[name].default == theirs[name].default
    assert {"output_attentions", "output_hidden_states", "return_dict"} < ours.keys()


def test_positions_and_names_mean_the_same():
    model = modeling.XLMRobertaForMultipleChoice(config()).eval()
    ids = IDS[None].expand(3, 2, 4)
    types = torch.zeros_like(ids)
    mask = torch.tensor([1, 1, 1, 0]).expand(3, 2, 4)
    labels = torch.tensor([0, 1, 1])
    by_position = model(ids, types, mask, labels)
    by_name = model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels)
    assert torch.equal(by_position.logits, by_name.logits)
    assert torch.equal(by_position.loss, by_name.loss)
    assert by_position.logits.shape == (3, 2)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:XLMRobertaForCausalLM sees")
def test_what_a_class_has_no_use_for_is_refused_by_name(cls):
    model = cls(config())
    name = cls.__name__
    own = OWN - inspect.signature(cls.forward).parameters.keys()
    assert own
    for key in own:
        with pytest.raises(UserError, match=f"{name}: no use for {key}"):
            model(IDS, **{key: torch.zeros(2)})
    with pytest.raises(UserError, match=f"{name}: no use for atention_mask; did you mean attention_mask?"):
        model(IDS, atention_mask=None)
    with pytest.raises(UserError, match=f"{name}: input_ids is given twice"):
        model(IDS, input_ids=IDS)
    with pytest.raises(UserError, match="arguments by position, got 20"):
        model(*[None] * 20)


def test_the_inputs_are_one_of_ids_and_embeddings():
    model = modeling.XLMRobertaModel(config())
    with pytest.raises(UserError, match="exactly one"):
        model()
    with pytest.raises(UserError, match="exactly one"):
        model(IDS, inputs_embeds=torch.zeros(2, 4, 16))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids: got shape \(4,\), expected \(batch, length\)"),
        ({"inputs_embeds": torch.zeros(2, 16)}, r"inputs_embeds: got shape \(2, 16\), expected \(batch, length, 16\)"),
        (
            {"inputs_embeds": torch.zeros(2, 3, 8)},
            r"inputs_embeds: got shape \(2, 3, 8\), expected \(batch, length, 16\)",
        ),
        ({"input_ids": IDS + 28}, "input_ids: got 28 to 37, expected 0 to 29"),
        ({"input_ids": IDS, "token_type_ids": IDS}, "token_type_ids: got 0 to 9, expected 0 to 1"),
        ({"input_ids": IDS, "token_type_ids": IDS[:, :2]}, r"token_type_ids: got shape \(2, 2\), expected \(2, 4\)"),
        ({"input_ids": IDS, "position_ids": IDS + 5}, "position_ids: got 5 to 14, expected 0 to 11"),
        ({"input_ids": IDS, "position_ids": IDS[:, 1:]}, r"position_ids: got shape \(2, 3\), expected \(2, 4\)"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 3)},
            r"attention_mask: got shape \(2, 3\), expected \(2, 4\) or ",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(3, 4)},
            r"attention_mask: got shape \(3, 4\), expected \(2, 4\) or ",
        ),
        ({"input_ids": IDS, "attention_mask": torch.ones(2, 4, 4)}, r"attention_mask: got shape \(2, 4, 4\), expected"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 4, 4).long()},
            "got torch.int64; with four dimensions, expected booleans",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 3, 4, 4)},
            r"attention_mask: got shape \(2, 3, 4, 4\), expected",
        ),
    ],
)
def test_bad_inputs_are_named_with_what_is_wanted(inputs, message):
    with pytest.raises(UserError, match=message):
        modeling.XLMRobertaModel(config())(**inputs)


def test_a_text_longer_than_the_positions_is_refused_by_name():
    model = modeling.XLMRobertaModel(config(max_position_embeddings=10, is_decoder=True))
    model(torch.full((1, 8), 5))
    with pytest.raises(UserError, match="9 tokens in a text, the model has positions for 8"):
        model(torch.full((1, 9), 5))
    with pytest.raises(UserError, match="9 tokens in a text, the model has positions for 8"):
        model(torch.full((1, 1), 5), past_key_values=model(torch.full((1, 8), 5)).past_key_values)
    padded = torch.cat([torch.full((1, 8), 5), torch.full((1, 3), 1)], 1)
    assert model(padded, padded != 1).last_hidden_state.shape == (1, 11, 16)


def test_labels_fit_their_tokens():
    for cls in (modeling.XLMRobertaForMaskedLM, modeling.XLMRobertaForTokenClassification):
        with pytest.raises(UserError, match=r"labels: got shape \(2, 3\), expected \(2, 4\)"):
            cls(config())(IDS, labels=IDS[:, :3])
    with pytest.raises(UserError, match=r"labels: got shape \(2, 1\), expected \(2,\)"):
        modeling.XLMRobertaForMultipleChoice(config())(IDS[None].expand(2, 2, 4), labels=torch.tensor([[0], [1]]))
    with pytest.raises(UserError, match=r"input_ids: got shape \(2, 4\), expected \(batch, choices, length\)"):
        modeling.XLMRobertaForMultipleChoice(config())(IDS)
    answering = modeling.XLMRobertaForQuestionAnswering(config())
    with pytest.raises(UserError, match="both start_positions and end_positions"):
        answering(IDS, start_positions=torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"num_labels=2 .* got 3"):
        modeling.XLMRobertaForQuestionAnswering(config(num_labels=3))


@pytest.mark.parametrize("cls", [modeling.XLMRobertaForMaskedLM, modeling.XLMRobertaForCausalLM])
def test_logits_beside_a_loss_are_made_when_they_are_read(cls):
    torch.manual_seed(0)
    model = cls(config(is_decoder=cls is modeling.XLMRobertaForCausalLM)).eval()
    full = []
    model.lm_head.decoder.register_forward_hook(lambda *args: full.append(args[2].shape[:-1]) or None)
    output = model(IDS, labels=torch.where(IDS > 6, IDS, -100))
    whole = (2, 4)
    assert output[0] is output.loss
    assert output["loss"] is output.loss
    assert list(output.keys()) == ["loss", "logits"]
    assert "logits" in output
    assert len(output) == 2
    assert whole not in full
    wanted = model(IDS, use_cache=False).logits
    full.clear()
    with torch.no_grad():  # where they are read decides nothing
        loss, logits = output.values()
    assert full == [whole]
    assert torch.equal(logits, wanted)
    assert output.logits is logits
    assert output[1] is logits
    logits.sum().backward()
    assert model.lm_head.dense.weight.grad is not None
    assert loss is output.loss
    assert full == [whole]


def test_logits_are_those_of_the_weights_that_made_the_loss():
    model = modeling.XLMRobertaForMaskedLM(config())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(IDS, labels=IDS)
    output.loss.backward()
    optimizer.step()
    with pytest.raises(UserError, match="logits: the weights have changed since the loss"):
        _ = output.logits
    assert output.loss.isfinite()
    with torch.inference_mode():
        assert model(IDS, labels=IDS).logits.shape == (2, 4, 30)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(IDS, labels=IDS)
        wanted = model(IDS).logits
    assert output.logits.dtype is wanted.dtype is torch.bfloat16


def test_outputs_index_and_name():
    model = modeling.XLMRobertaForSequenceClassification(config(num_labels=3))
    output = model(IDS, labels=torch.tensor([1, 2]))
    loss, logits = output.to_tuple()
    assert output[0] is loss
    assert output[:2] == (loss, logits)
    assert output["logits"] is output[-1] is logits
    assert list(output) == list(output.keys()) == ["loss", "logits"]
    assert {**output} == dict(output) == dict(output.items()) == {"loss": loss, "logits": logits}
    assert output.get("attentions") is output.attentions is None
    with pytest.raises(KeyError, match="attentions"):
        output["attentions"]
    with pytest.raises(AttributeError, match="has no 'attention'"):
        output.attention  # noqa: B018
    with pytest.raises(IndexError):
        output[2]
    as_tuple = model(IDS, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1
    assert isinstance(modeling.XLMRobertaModel(config(return_dict=False))(IDS), tuple)


def test_outputs_go_to_other_processes():
    with torch.no_grad():
        output = modeling.XLMRobertaForMaskedLM(config())(IDS, labels=IDS)
        again = pickle.loads(pickle.dumps(output))
    assert torch.equal(again.logits, output.logits)


def test_dropout_acts_in_training_only():
    ids = torch.arange(5, 13)[None]
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, name: 0.5}
        for implementation in ("eager", "sdpa"):
            model = modeling.XLMRobertaModel(config(**rates, attn_implementation=implementation))
            assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
            model.eval()
            assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    for cls, values in (
        (modeling.XLMRobertaForTokenClassification, {"classifier_dropout": 0.5}),
        (modeling.XLMRobertaForSequenceClassification, {"classifier_dropout": 0.5}),
    ):
        model = cls(config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **values))
        assert not torch.equal(model(ids).logits, model(ids).logits)


def test_attentions_of_a_fused_back_end_are_announced():
    model = modeling.XLMRobertaModel(config())
    with pytest.warns(UserWarning, match="output_attentions: sdpa .* computed eagerly"):
        model(IDS, output_attentions=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_attn_implementation("eager")
        model(IDS, output_attentions=True)
    assert not model.config.output_attentions


def test_the_embeddings_at_both_ends_are_the_references():
    model = modeling.XLMRobertaForMaskedLM(config())
    assert model.get_input_embeddings() is model.roberta.embeddings.word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_what_sees_nothing_is_a_number(implementation):
    model = modeling.XLMRobertaModel(config(attn_implementation=implementation)).eval()
    smallest = torch.zeros(2, 1, 4, 4)
    smallest[0, :, 1:] = -torch.inf
    seen = smallest == 0
    for dtype in (torch.float32, torch.float16):
        for mask in (smallest, seen, seen[:, 0, 1]):
            hidden = model.to(dtype)(IDS, mask).last_hidden_state
            assert hidden.isfinite().all()
            hidden.float().sum().backward()
            assert all(p.grad.isfinite().all() for p in model.encoder.parameters())


def test_a_call_compiles_to_one_graph():
    model = modeling.XLMRobertaForTokenClassification(config()).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        got, wanted = compiled(input_ids=IDS, attention_mask=mask), model(IDS, mask)
    assert torch.allclose(got.logits, wanted.logits, atol=1e-6)
