"""What holds of every class, in the manner of transformers' common tests: in our words, with its classes as the oracle
where there is a number to compare.
"""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import xlmr_ray
from tests.modeling.classes import CLASSES, IDS, inputs, labels, make

TEXTS = torch.tensor([[0, 7, 9, 12, 6, 2], [0, 8, 5, 2, 1, 1], [0, 30, 2, 1, 1, 1]])
NAMES = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
everywhere = pytest.mark.parametrize("name", CLASSES)


def results(output: Any) -> list[Tensor]:
    return [output[name] for name in NAMES if name in output]


def close(some: list[Tensor], others: list[Tensor], atol: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(some, others, strict=True))


def pair(name: str, **values: Any) -> tuple[Any, Any]:
    theirs, ours = make(name, transformers, **values), make(name, **values)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@everywhere
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / "model")
    for library in (xlmr_ray, transformers):
        again = getattr(library, f"XLMRoberta{name}").from_pretrained(tmp_path / "model")
        assert not again.training
        assert close(results(again(**inputs(name))), results(model(**inputs(name))))
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "model")
    assert all(torch.equal(kept[key], tensor) for key, tensor in model.state_dict().items())


@everywhere
def test_an_encoder_serves_every_class(name: str, tmp_path: Path) -> None:
    """Saved bare and loaded under a head, and the other way round."""
    model = make("Model")
    model.save_pretrained(tmp_path / "bare")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        headed = getattr(xlmr_ray, f"XLMRoberta{name}").from_pretrained(tmp_path / "bare")
        headed.save_pretrained(tmp_path / "headed")
        bare = xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path / "headed")
    assert close([bare(IDS).last_hidden_state], [model(IDS).last_hidden_state])


@everywhere
@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights(name: str, tied: bool, tmp_path: Path) -> None:
    model = make(name, tie_word_embeddings=tied)
    output = model.get_output_embeddings()
    assert (output is not None) == name.endswith("LM")
    if output is None:
        return
    assert (output.weight is model.get_input_embeddings().weight) == tied
    assert output.bias is model.lm_head.bias
    for twin in (copy.deepcopy(model), model.to(torch.float64)):
        assert (twin.get_output_embeddings().weight is twin.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied


@everywhere
def test_more_and_fewer_tokens(name: str) -> None:
    model = make(name)
    before = results(model(**inputs(name)))
    model.resize_token_embeddings(50)
    more = results(model(**inputs(name)))
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 50
    if name.endswith("LM"):
        assert more[0].shape[-1] == model.get_output_embeddings().out_features == 50
        more = [more[0][..., :40]]
    assert close(more, before)
    assert results(model(**inputs(name, torch.tensor([[0, 49, 2]]))))
    model.resize_token_embeddings(35)
    with pytest.raises(xlmr_ray.UserError, match="input_ids"):
        model(**inputs(name, torch.tensor([[0, 35, 2]])))


@everywhere
def test_embeddings_in_place_of_ids(name: str) -> None:
    model = make(name)
    # Without padding: embeddings do not tell where it is.
    given = inputs(name, torch.tensor([[0, 7, 9, 12, 2], [0, 8, 5, 30, 2]]))
    embeds = model.get_input_embeddings()(given["input_ids"])
    assert close(results(model(inputs_embeds=embeds, attention_mask=given["attention_mask"])), results(model(**given)))


@everywhere
def test_each_text_alone_and_in_a_batch(name: str) -> None:
    model = make(name)
    together = results(model(**inputs(name, TEXTS)))
    for row, text in enumerate(TEXTS):
        alone = text[text != 1][None]
        found = results(model(**inputs(name, alone)))
        for whole, one in zip(together, found, strict=True):
            of_text = whole[0, row] if name == "ForMultipleChoice" else whole[row]
            one = one.view(-1) if of_text.dim() == 0 else one[0]
            # What has a length ends with padding in the batch.
            of_text = of_text.view(-1) if of_text.dim() == 0 else of_text[: len(one)]
            assert torch.allclose(of_text, one, atol=1e-5)


@everywhere
def test_hidden_states_and_attentions(name: str) -> None:
    theirs, ours = pair(name, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    wanted, got = (model(**inputs(name), **asked) for model in (theirs, ours))
    assert [*got] == [*wanted]
    rows, length = IDS.shape
    assert len(got.hidden_states) == 3
    assert {x.shape for x in got.hidden_states} == {(rows, length, 16)}
    assert {x.shape for x in got.attentions} == {(rows, 2, length, length)}
    for key in ("hidden_states", "attentions"):
        assert close(list(got[key]), list(wanted[key]))
    for attention in got.attentions:
        assert torch.allclose(attention.sum(-1), torch.ones(()))
    # By the configuration, too, and not unless asked for.
    assert "attentions" not in ours(**inputs(name))
    ours.config.output_attentions = ours.config.output_hidden_states = True
    assert len(ours(**inputs(name)).attentions) == 2
    # The last one is what the head reads.
    if name == "Model":
        assert got.hidden_states[-1] is got.last_hidden_state


@everywhere
@pytest.mark.filterwarnings("ignore:output_attentions")
def test_gradients_reach_what_comes_between(name: str) -> None:
    model = make(name)
    output = model(**inputs(name), output_hidden_states=True, output_attentions=True)
    first = results(output)[0]
    between = [output.hidden_states[0], output.attentions[0]]
    for tensor in between:
        tensor.retain_grad()
    first.flatten()[0].backward(retain_graph=True)
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in between)


@everywhere
def test_tuples(name: str) -> None:
    model = make(name)
    for more in ({}, labels(name), {"output_hidden_states": True}):
        output = model(**inputs(name), **more)
        plain = model(**inputs(name), **more, return_dict=False)
        assert isinstance(plain, tuple)
        assert len(plain) == len(output)
        assert torch.equal(plain[0], output[0])
    model.config.return_dict = False
    assert isinstance(model(**inputs(name)), tuple)


@everywhere
def test_the_same_again(name: str) -> None:
    model = make(name)
    assert close(results(model(**inputs(name))), results(model(**inputs(name))), 0.0)
    model.train()
    torch.manual_seed(0)
    first = results(model(**inputs(name)))
    torch.manual_seed(0)
    assert close(first, results(model(**inputs(name))))
    assert not close(first, results(model(**inputs(name))))


@everywhere
def test_fresh_weights(name: str) -> None:
    """As transformers makes them: 0, 1, or normal with the configuration's deviation."""
    theirs, ours = (
        make(name, library, initializer_range=0.02, hidden_size=64, intermediate_size=128)
        for library in (transformers, xlmr_ray)
    )
    wanted = theirs.state_dict()
    assert all(parameter.requires_grad for parameter in ours.parameters())
    for key, tensor in ours.state_dict().items():
        for measure in (torch.mean, lambda x: torch.std(x, correction=0)):
            assert abs(float(measure(tensor)) - float(measure(wanted[key]))) < 0.01, key
    config = xlmr_ray.XLMRobertaConfig(initializer_range=0.0, vocab_size=9, hidden_size=8, num_attention_heads=2)
    flat = getattr(xlmr_ray, f"XLMRoberta{name}")(config)
    assert {float(tensor.mean()) for tensor in flat.state_dict().values()} <= {0.0, 1.0}


@everywhere
def test_signatures(name: str) -> None:
    """Every argument of transformers' forward by its name, those by position in its order."""
    theirs, ours = (
        inspect.signature(getattr(library, f"XLMRoberta{name}").forward).parameters
        for library in (transformers, xlmr_ray)
    )
    wanted = [key for key, one in theirs.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [key for key in ours if key in wanted] == wanted


@everywhere
def test_what_trains_learns(name: str) -> None:
    if name == "Model":
        return
    model = make(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        loss = model(**inputs(name), **labels(name)).loss
        loss.backward()
        assert all(p.grad is not None for key, p in model.named_parameters() if "pooler" not in key)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model = make(name)
    wanted = results(model(**inputs(name)))
    got = results(model.to(dtype)(**inputs(name)))
    assert {x.dtype for x in got} == {dtype}
    assert close([x.float() for x in got], wanted, 0.5 if dtype is torch.bfloat16 else 1e-5)


@everywhere
def test_no_heads_are_pruned(name: str) -> None:
    """As in transformers 5, which has no pruning of heads any more."""
    assert not hasattr(transformers.XLMRobertaModel, "prune_heads")
    assert not hasattr(make(name), "prune_heads")


@everywhere
def test_parts_have_the_names_of_transformers(name: str) -> None:
    theirs, ours = pair(name)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    names = {key for key, module in ours.named_modules() if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)}
    assert names == {
        key for key, module in theirs.named_modules() if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)
    }
    assert ours.base_model_prefix == theirs.base_model_prefix
    assert ours.main_input_name == theirs.main_input_name
