"""Settings of `generate` that scripts pass: ids, scores and outputs are those of transformers' `generate`."""

import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_leaves

import xlmr_ray
from tests.modeling.classes import make
from xlmr_ray.errors import UserError

IDS = torch.tensor([[0, 7, 9, 12], [0, 8, 5, 30]])
HIDDEN = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
WIDE = {"max_position_embeddings": 80, "initializer_range": 0.5}
SAMPLED = {"do_sample": True}
BEAMS = {"num_beams": 3}
RICH = {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    theirs = make("ForCausalLM", transformers, attn_implementation="eager", **WIDE)
    ours = make("ForCausalLM", attn_implementation="eager", **WIDE)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def allowed(prompt: int, ids: Tensor) -> list[int]:
    return [5, 6, 7 + prompt, int(ids[-1])]


def both(pair: tuple[Any, Any], *positional: Any, **named: Any) -> list[Any]:
    found = []
    for model in pair:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(model.generate(*positional, **{"max_new_tokens": 6, **named}))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"bad_words_ids": [[7], [9, 12], [31], [2]]},
        {"bad_words_ids": [[7], [9, 12], [31]], **BEAMS},
        {"prefix_allowed_tokens_fn": allowed},
        {"prefix_allowed_tokens_fn": allowed, **BEAMS},
        {"typical_p": 0.7, **SAMPLED},
        {"typical_p": 0.4, **SAMPLED, **BEAMS},
        {"epsilon_cutoff": 0.02, **SAMPLED},
        {"eta_cutoff": 0.02, **SAMPLED},
        {"sequence_bias": {(7,): 3.0, (9, 12): -2.0, (30, 11): 9.0}},
        {"sequence_bias": [[[7], 3.0], [[12, 32], 9.0]], **BEAMS},
        {"renormalize_logits": True, "top_k": 5, **SAMPLED},
        {"renormalize_logits": True, **BEAMS},
        {"guidance_scale": 1.7},
        {"guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[0, 4], [0, 6]])},
        {"max_time": 1000.0},
        {"forced_bos_token_id": 5},
        {"forced_eos_token_id": 2},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"begin_suppress_tokens": [32, 5]},
        {"remove_invalid_values": True},
        {"logits_to_keep": 1, "low_memory": None, "synced_gpus": False, "cache_implementation": "dynamic"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings(pair: tuple[Any, Any], settings: dict[str, Any]) -> None:
    wanted, got = both(pair, IDS, **settings)
    assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "how", [{}, SAMPLED, BEAMS, {"attention_mask": HIDDEN}, {"max_length": 9, "max_new_tokens": None}]
)
@pytest.mark.parametrize("named", [True, False])
def test_prompts_as_embeddings(pair: tuple[Any, Any], how: dict[str, Any], named: bool) -> None:
    embeds = pair[0].get_input_embeddings()(IDS).detach()
    wanted, got = both(pair, IDS if named else None, inputs_embeds=embeds, **how)
    assert got.tolist() == wanted.tolist()
    again = both((pair[1],), IDS if named else None, inputs_embeds=embeds, **how, use_cache=False)[0]
    assert again.tolist() == got.tolist()


def test_embeddings_and_ids_of_other_lengths_are_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="2 input_ids for 4 inputs_embeds"):
        pair[1].generate(IDS[:, :2], inputs_embeds=torch.zeros(2, 4, 16), max_new_tokens=2)


@pytest.mark.parametrize("asked", [*({name: True} for name in RICH), RICH], ids=lambda asked: "-".join(asked))
@pytest.mark.parametrize("how", [{}, SAMPLED, BEAMS, {**BEAMS, "num_return_sequences": 2}], ids=str)
def test_outputs(pair: tuple[Any, Any], asked: dict[str, Any], how: dict[str, Any]) -> None:
    wanted, got = both(pair, IDS, return_dict_in_generate=True, **asked, **how)
    assert [name for name in got if name != "past_key_values"] == [n for n in wanted if n != "past_key_values"]
    for name in got:
        if name == "past_key_values":
            continue
        leaves: Iterable[tuple[Tensor, Tensor]] = zip(tree_leaves(got[name]), tree_leaves(wanted[name]), strict=True)
        for ours, theirs in leaves:
            assert ours.shape == theirs.shape, name
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-4), name
    if "output_scores" in asked:
        for normalize in (True, False):
            scores = [
                model.compute_transition_scores(
                    out.sequences, out.scores, out.get("beam_indices"), normalize_logits=normalize
                )
                for model, out in zip(pair, (wanted, got), strict=True)
            ]
            assert torch.allclose(scores[1], scores[0], atol=1e-4)


@pytest.mark.parametrize("how", [{}, BEAMS])
def test_a_cache_of_transformers(pair: tuple[Any, Any], how: dict[str, Any]) -> None:
    caches = [transformers.DynamicCache(config=pair[0].config) for _ in pair]
    wanted, got = (both((m,), IDS, past_key_values=c, **how)[0] for m, c in zip(pair, caches, strict=True))
    assert got.tolist() == wanted.tolist()
    assert caches[1].get_seq_length() == caches[0].get_seq_length() > 4
    theirs, ours = pair
    cache = transformers.DynamicCache(config=theirs.config)
    first = ours(IDS[:, :2], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache
    wanted = theirs(IDS).logits[:, 2:]
    assert torch.allclose(ours(IDS[:, 2:], past_key_values=cache).logits, wanted, atol=1e-5)
    with pytest.raises(UserError, match="past_key_values: expected a DynamicCache, got StaticCache"):
        ours(IDS, past_key_values=transformers.StaticCache(config=theirs.config, max_cache_len=20))
    assert isinstance(xlmr_ray.DynamicCache(), transformers.DynamicCache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assistant_model": object()}, "generate: assistant_model is not supported: one model generates"),
        ({"cache_implementation": "static"}, "cache_implementation is not supported: the cache grows with the tokens"),
        ({"watermarking_config": object()}, "watermarking_config is not supported: give its processor in logits_proce"),
        ({"num_beam_groups": 2}, "num_beam_groups is not supported"),
        ({"bad_words_ids": [[99]]}, "sequence_bias or bad_words_ids: token 99, the vocabulary has 40"),
        ({"sequence_bias": [7, 8]}, "sequence_bias: sequences of ids, each with a number"),
        ({"prefix_allowed_tokens_fn": lambda i, ids: []}, "prefix_allowed_tokens_fn allows no token for prompt 0"),
        ({"typical_p": 3.0}, "typical_p must be from 0 to 1, got 3.0"),
    ],
)
def test_what_is_refused(pair: tuple[Any, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair[1].generate(IDS, max_new_tokens=2, **settings)


def test_no_step_begins_after_the_time(pair: tuple[Any, Any]) -> None:
    assert pair[1].generate(IDS, max_new_tokens=30, max_time=0.0).shape[1] == 5
