"""Text generation against transformers' own, id for id."""

import itertools
import warnings

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.models import TOKENIZER
from xlmr_ray import UserError, XLMRobertaConfig, XLMRobertaTokenizer
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.generation.generate import generate
from xlmr_ray.model.generation.scores import completes
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForCausalLM, XLMRobertaForMaskedLM, XLMRobertaForTokenClassification

PAD, EOS = 1, 2


class Generating(transformers.XLMRobertaForMaskedLM, transformers.GenerationMixin):
    """What transformers' documentation calls `generate` on; its own class has none."""


def pair(reference=transformers.XLMRobertaForCausalLM, ours=XLMRobertaForCausalLM, **values):
    """A model of transformers whose texts end now and then, and ours with its weights."""
    torch.manual_seed(1)
    shape = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37}
    more = {"num_hidden_layers": 2, "max_position_embeddings": 64, "type_vocab_size": 1, "initializer_range": 0.4}
    config = transformers.XLMRobertaConfig(**{**shape, **more, "is_decoder": True, **values})
    wanted = reference(config).eval()
    with torch.no_grad():
        wanted.lm_head.bias[EOS] += 6 if config.vocab_size == 40 else 0
    got = ours(XLMRobertaConfig.from_dict(config.to_dict())).eval()
    got.load_state_dict(wanted.state_dict())
    return wanted, got


@pytest.fixture(scope="module")
def decoder():
    return pair()


@pytest.fixture(scope="module")
def prompts():
    """Five prompts of several lengths, padded on the left, and their mask."""
    torch.manual_seed(2)
    ids = torch.randint(3, 40, (5, 7))
    mask = torch.ones_like(ids)
    for row, length in enumerate((7, 3, 5, 1, 6)):
        ids[row, : 7 - length] = PAD
        mask[row, : 7 - length] = 0
    return ids, mask


def assert_same(models, ids, mask, **chosen):
    wanted, got = models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        expected = wanted.generate(ids, attention_mask=mask, **chosen)
        torch.manual_seed(3)
        torch.testing.assert_close(got.generate(ids, mask, **chosen), expected, rtol=0, atol=0)
    return expected


GREEDY = [
    {},
    {"max_new_tokens": 30},
    {"max_length": 15},
    {"max_new_tokens": 12, "repetition_penalty": 1.3},
    {"max_new_tokens": 25, "no_repeat_ngram_size": 2, "suppress_tokens": [EOS]},
    {"max_new_tokens": 25, "no_repeat_ngram_size": 1},
    {"max_new_tokens": 12, "min_new_tokens": 8},
    {"max_new_tokens": 12, "min_length": 12},
    {"max_new_tokens": 20, "eos_token_id": [EOS, 5, 9]},
    {"max_new_tokens": 10, "eos_token_id": None},
    {"max_new_tokens": 10, "pad_token_id": 17},
    {"max_new_tokens": 9, "use_cache": False},
]
SAMPLED = [
    {},
    {"top_k": 5, "temperature": 0.7},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": None, "top_p": 0.5, "temperature": 2.0, "repetition_penalty": 0.7},
    {"top_k": 0, "top_p": 0.0},
    {"min_p": 0.2, "num_return_sequences": 3},
]


@pytest.mark.parametrize("settings", GREEDY, ids=str)
def test_greedy_ids_are_the_references(decoder, prompts, settings):
    assert_same(decoder, *prompts, **settings)


@pytest.mark.parametrize("settings", SAMPLED, ids=str)
def test_seeded_samples_are_the_references(decoder, prompts, settings):
    assert_same(decoder, *prompts, do_sample=True, max_new_tokens=20, **settings)


@pytest.mark.parametrize(
    ("penalty", "early", "eos"), [*itertools.product([1.0, 0.0, 2.0, -0.5], [True, False, "never"], [EOS, [EOS, 7]])]
)
def test_beams_are_the_references(decoder, prompts, penalty, early, eos):
    assert_same(
        decoder,
        *prompts,
        num_beams=4,
        num_return_sequences=3,
        max_new_tokens=12,
        length_penalty=penalty,
        early_stopping=early,
        eos_token_id=eos,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2, "max_new_tokens": 1},
        {"num_beams": 3, "do_sample": True, "temperature": 1.5},
        {"num_beams": 3, "do_sample": True, "top_p": 0.6, "top_k": 2, "eos_token_id": [2, 3, 4]},
        {"num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
        {"num_beams": 3, "eos_token_id": None, "pad_token_id": None},
        {"num_beams": 3, "pad_token_id": 0},
        {"num_beams": 3, "use_cache": False},
    ],
    ids=str,
)
def test_other_beams_are_the_references(decoder, prompts, settings):
    assert_same(decoder, *prompts, **{"max_new_tokens": 12, **settings})


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_prompts_of_every_kind(decoder, prompts, settings):
    ids, mask = prompts
    settings = {"max_new_tokens": 9, **settings}
    assert_same(decoder, ids[:1], mask[:1], **settings)  # nothing is padded
    assert_same(decoder, ids, None, **settings)  # the padding's id tells the mask
    assert_same(decoder, None, None, **settings)  # the token of the beginning
    assert_same(decoder, ids, mask, position_ids=mask.cumsum(-1) + PAD, **settings)  # those of `forward`


SETTINGS = st.fixed_dictionaries(
    {
        "do_sample": st.booleans(),
        "max_new_tokens": st.integers(1, 12),
        "num_beams": st.integers(1, 4),
        "eos_token_id": st.sampled_from([EOS, [EOS, 7], [3, 4, 5, EOS]]),
    },
    optional={
        "temperature": st.sampled_from([0.3, 1.0, 1.7]),
        "top_k": st.integers(0, 45),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.0, 0.5),
        "repetition_penalty": st.sampled_from([0.8, 1.0, 1.2]),
        "no_repeat_ngram_size": st.integers(0, 3),
        "min_new_tokens": st.integers(0, 5),
        "suppress_tokens": st.lists(st.integers(3, 39), min_size=1, max_size=3, unique=True),
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.6, 1.0]),
        "early_stopping": st.sampled_from([True, False, "never"]),
    },
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SETTINGS, st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_any_settings_give_the_references_ids(decoder, prompts, chosen, rows):
    assert_same(decoder, prompts[0][rows], prompts[1][rows], **chosen)


def test_texts_end_before_their_length_in_these_tests(decoder, prompts):
    new = assert_same(decoder, *prompts, max_new_tokens=12)[:, 7:]
    assert 0 < (new == EOS).any(1).sum() < len(new)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_that_is_no_decoder(prompts, use_cache):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pair(is_decoder=False)
    for settings in ({}, {"num_beams": 3}):
        assert_same(models, *prompts, max_new_tokens=9, use_cache=use_cache, **settings)


def test_a_masked_language_model(prompts):
    models = pair(Generating, XLMRobertaForMaskedLM, is_decoder=False)
    for settings in ({}, {"num_beams": 3}, {"do_sample": True}):
        expected = assert_same(models, *prompts, max_new_tokens=9, use_cache=False, **settings)
    torch.manual_seed(3)
    assert models[1].generate(*prompts, max_new_tokens=9, do_sample=True).equal(expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cross_attention(prompts, num_beams):
    wanted, got = pair(add_cross_attention=True)
    states, seen = torch.randn(5, 6, 32), torch.ones(5, 6, dtype=torch.long)
    seen[0, 3:] = 0
    arguments = {"encoder_hidden_states": states, "encoder_attention_mask": seen}
    ids, mask = prompts
    expected = wanted.generate(
        ids, attention_mask=mask, use_cache=False, num_beams=num_beams, max_new_tokens=9, **arguments
    )
    for use_cache in (True, False):
        text = generate(got, ids, mask, use_cache=use_cache, num_beams=num_beams, max_new_tokens=9, **arguments)
        assert text.equal(expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_token_types_go_on_as_the_last(prompts, num_beams):
    ids, mask = prompts
    types = torch.randint(0, 3, ids.shape)
    models = pair(type_vocab_size=3)
    assert_same(models, ids, mask, token_type_ids=types, max_new_tokens=9, num_beams=num_beams)
    with pytest.raises(UserError, match="6 token_type_ids for 7 input_ids"):
        models[1].generate(ids, mask, token_type_ids=types[:, 1:], max_new_tokens=9)


def test_scores_and_the_cache(decoder, prompts):
    ids, mask = prompts
    settings = {"max_new_tokens": 9, "return_dict_in_generate": True, "output_scores": True, "eos_token_id": None}
    expected = decoder[0].generate(ids, attention_mask=mask, **settings)
    output = generate(decoder[1], ids, mask, **settings)
    assert output.sequences.equal(expected.sequences)
    assert len(output.scores) == 9
    for mine, theirs in zip(output.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert output.past_key_values.get_seq_length() == 7 + 8
    expected = decoder[0].generate(ids, attention_mask=mask, num_beams=3, **settings)
    output = generate(decoder[1], ids, mask, num_beams=3, **settings)
    torch.testing.assert_close(output.sequences_scores, expected.sequences_scores)


def test_a_text_goes_on_from_its_cache(decoder, prompts):
    ids, mask = prompts
    settings = {"eos_token_id": None, "return_dict_in_generate": True}
    whole = generate(decoder[1], ids, mask, max_new_tokens=9, eos_token_id=None)
    first = generate(decoder[1], ids, mask, max_new_tokens=4, **settings)
    rest = generate(
        decoder[1],
        first.sequences,
        torch.cat([mask, torch.ones(5, 4, dtype=torch.long)], 1),
        past_key_values=first.past_key_values,
        max_new_tokens=5,
        **settings,
    )
    assert rest.sequences.equal(whole)


def test_a_generator_a_row_makes_rows_independent(decoder, prompts):
    ids, mask = prompts[0][:, -1:], prompts[1][:, -1:]
    settings = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None}

    def seeded(rows):
        return [torch.Generator().manual_seed(100 + row) for row in rows]

    whole = generate(decoder[1], ids, mask, generator=seeded(range(5)), **settings)
    some = generate(decoder[1], ids[[3, 1]], mask[[3, 1]], generator=seeded([3, 1]), **settings)
    assert some.equal(whole[[3, 1]])
    torch.manual_seed(100)
    assert decoder[0].generate(ids[:1], **settings).equal(whole[:1])
    assert generate(decoder[1], ids, mask, num_beams=2, generator=seeded(range(5)), **settings).shape == (5, 13)


def test_stop_strings_are_the_references(mini):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    models = pair(vocab_size=len(tokenizer))
    ids = tokenizer(["All human beings are born free", "tous les êtres humains"])["input_ids"]
    ids = torch.tensor([row[:5] for row in ids])
    mask = torch.ones_like(ids)
    free = generate(models[1], ids, mask, max_new_tokens=12, eos_token_id=None)
    text = tokenizer.decode(free[0, 5:])
    own = XLMRobertaTokenizer.from_pretrained(mini)
    stopped = 0
    for string in (text[2:4], text[-3:], [text[:1], "never there"], "never there"):
        expected = models[0].generate(
            ids, max_new_tokens=12, eos_token_id=None, stop_strings=string, tokenizer=tokenizer
        )
        got = generate(models[1], ids, mask, max_new_tokens=12, eos_token_id=None, stop_strings=string, tokenizer=own)
        assert got.equal(expected)
        alone = models[0].generate(
            ids[:1], max_new_tokens=12, eos_token_id=None, stop_strings=string, tokenizer=tokenizer
        )
        got = generate(
            models[1], ids[:1], None, max_new_tokens=12, eos_token_id=None, stop_strings=string, tokenizer=own
        )
        assert got.equal(alone)
        stopped += got.shape[1] < 17
    assert stopped >= 2


@given(st.lists(st.text("ab▁", min_size=1, max_size=3), min_size=1, max_size=6), st.text("ab ", min_size=1, max_size=5))
def test_a_string_is_complete_when_it_reaches_into_the_last_piece(pieces, string):
    text = "".join(pieces).replace("▁", " ")
    found = [start for start in range(len(text)) if text.startswith(string, start)]
    assert completes(pieces, [string]) == any(start + len(string) > len(text) - len(pieces[-1]) for start in found)


def test_own_criteria_processors_and_streamers(decoder, prompts):
    ids, mask = prompts

    class Seen:
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ended = True

    def forbid(so_far, scores):
        return scores.index_fill(1, torch.tensor([EOS, 11]), -torch.inf)

    def long_enough(so_far, scores):
        return torch.full((len(so_far),), so_far.shape[1] >= 11)

    arguments = {"logits_processor": [forbid], "stopping_criteria": [long_enough], "max_new_tokens": 20}
    streamer, theirs = Seen(), Seen()
    text = generate(decoder[1], ids, mask, streamer=streamer, **arguments)
    expected = decoder[0].generate(
        ids,
        attention_mask=mask,
        streamer=theirs,
        max_new_tokens=20,
        logits_processor=transformers.LogitsProcessorList([forbid]),
        stopping_criteria=transformers.StoppingCriteriaList([long_enough]),
    )
    assert text.equal(expected)
    assert text.shape == (5, 11)
    assert streamer.ended
    assert all(a.equal(b) for a, b in zip(streamer.values, theirs.values, strict=True))
    assert generate(decoder[1], ids, mask, stopping_criteria=long_enough, max_new_tokens=20).shape[1] <= 11


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 on"),
        ({"max_new_tokens": 59}, "59 new tokens after a prompt of 7, the model has positions for 58"),
        ({"max_length": 7}, "a prompt of 7 tokens and a text of at most 7"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"temperature": 0.0, "do_sample": True}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1"),
        ({"num_return_sequences": 2}, "do_sample=True or num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than the 2 beams"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"stop_strings": "x", "max_new_tokens": 5}, "tokenizer="),
        ({"attention_mask": torch.ones(5, 6)}, "attention_mask: expected the shape of input_ids"),
        ({"position_ids": torch.ones(5, 6)}, "6 position_ids for 7 input_ids"),
        ({"num_beams": 2, "streamer": object()}, "no tokens to stream"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_say_what_to_do(decoder, prompts, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        generate(decoder[1], prompts[0], **settings)
    assert "\n" not in str(caught.value)


def test_a_text_may_fill_all_positions(decoder, prompts):
    assert assert_same(decoder, *prompts, max_new_tokens=58, eos_token_id=None).shape == (5, 65)


def test_padding_on_the_right_is_warned_of(decoder, prompts):
    ids, mask = (x.flip(1) for x in prompts)
    with pytest.warns(UserWarning, match="padding_side='left'"):
        generate(decoder[1], ids, mask, max_new_tokens=2)
    with pytest.warns(UserWarning, match="max_new_tokens is not set"):
        generate(decoder[1], ids[:1])


def test_settings_of_a_checkpoint(decoder, prompts, tmp_path):
    theirs = transformers.GenerationConfig(num_beams=3, max_new_tokens=5, eos_token_id=[2, 4], length_penalty=0.5)
    theirs.save_pretrained(tmp_path)
    ours = GenerationConfig.from_pretrained(tmp_path)
    assert ours == GenerationConfig(num_beams=3, max_new_tokens=5, eos_token_id=[2, 4], length_penalty=0.5)
    ours.save_pretrained(tmp_path / "again")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert (again.num_beams, again.max_new_tokens, again.eos_token_id, again.length_penalty) == (3, 5, [2, 4], 0.5)
    assert GenerationConfig.from_pretrained(tmp_path / "again") == ours
    ids, mask = prompts
    expected = decoder[0].generate(ids, attention_mask=mask, generation_config=theirs)
    assert generate(decoder[1], ids, mask, generation_config=ours).equal(expected)
    assert generate(decoder[1], ids, mask, generation_config=theirs).equal(expected)
    with pytest.raises(UserError, match="expected a GenerationConfig, got dict"):
        generate(decoder[1], ids, mask, generation_config={"num_beams": 3})
    assert GenerationConfig.from_pretrained(tmp_path / "nowhere") is None


def test_a_model_brings_its_settings_along(decoder, prompts, tmp_path):
    model = XLMRobertaForCausalLM(decoder[1].config)
    model.load_state_dict(decoder[1].state_dict())
    assert model.can_generate()
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (EOS, PAD)
    model.generation_config.num_beams = 2
    model.generation_config.max_new_tokens = 6
    model.generation_config.eos_token_id = [EOS, 5]
    model.save_pretrained(tmp_path)
    again = XLMRobertaForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    theirs = transformers.XLMRobertaForCausalLM.from_pretrained(tmp_path)
    assert_same((theirs, again), *prompts)
    assert_same((theirs, again), *prompts, num_beams=1)
    again.generation_config.top_p = 2
    with pytest.raises(UserError, match="top_p must be from 0 to 1"):
        again.generate(*prompts)
    assert XLMRobertaForMaskedLM.can_generate()
    assert not XLMRobertaForTokenClassification.can_generate()


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"top_h = 0\.9 is not supported"):
        GenerationConfig.from_dict({"top_h": 0.9})
    assert GenerationConfig.from_dict({"typical_p": 1.0, "renormalize_logits": False, "transformers_version": "5"})
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a JSON object"):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        GenerationConfig.from_pretrained(tmp_path)
