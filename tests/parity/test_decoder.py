"""Decoders against transformers: causal masks, cross-attention, the cache, and losses; and the packed layout against
the padded one.
"""

import pytest
import torch
import transformers

import xlmr_ray
import xlmr_ray.modeling.xlm_roberta
from tests.parity.reference import DECODER, SHAPES, close, inputs, ours_of, reference, same
from xlmr_ray.errors import UserError
from xlmr_ray.model.encoder import Encoder, Trace
from xlmr_ray.model.generation.cache import DynamicCache
from xlmr_ray.model.layout import Packed

pytestmark = pytest.mark.filterwarnings("ignore:output_attentions", "ignore:XLMRobertaForMaskedLM does")

BACK_ENDS = ["eager", "sdpa"]
ASKED = {"output_hidden_states": True, "output_attentions": True}


def source_of(config: object, rows: int = 3, lengths: tuple[int, ...] = (5, 2, 4)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    states = torch.randn(rows, max(lengths), config.hidden_size, generator=generator)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("implementation", BACK_ENDS)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=lambda shape: str(shape["hidden_size"]))
@pytest.mark.parametrize("name", ["XLMRobertaModel", "XLMRobertaForCausalLM", "XLMRobertaForMaskedLM"])
def test_every_field_with_and_without_a_source(name, shape, implementation, left):
    theirs = reference(name, **shape, **DECODER, attn_implementation="eager")
    ours = ours_of(theirs, implementation)
    batch = inputs(theirs.config, [9, 3, 6], left=left)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        for asked in ({**source_of(theirs.config), **ASKED}, ASKED, {"use_cache": False}):
            wanted, got = theirs(**batch, **asked), ours(**batch, **asked)
            if left and name == "XLMRobertaModel":
                got.pooler_output = wanted.pooler_output  # of the first token, which is padding
            same(got, wanted, real)
            assert len(ours(**batch, **asked, return_dict=False)) == len(theirs(**batch, **asked, return_dict=False))
        whole = batch["input_ids"][:1, -3:]
        same(ours(whole), theirs(whole), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", ["XLMRobertaForSequenceClassification", "XLMRobertaForTokenClassification"])
def test_other_heads_on_a_decoder(name):
    theirs = reference(name, **SHAPES[0], **DECODER)
    batch = {**inputs(theirs.config, [9, 3, 6]), **source_of(theirs.config)}
    with torch.no_grad():
        same(ours_of(theirs)(**batch), theirs(**batch), batch["attention_mask"].bool())


@pytest.mark.parametrize("crossed", [False, True], ids=["alone", "crossed"])
@pytest.mark.parametrize("implementation", BACK_ENDS)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_steps_with_a_cache(left, implementation, crossed):
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[2], **DECODER, attn_implementation="eager")
    ours = ours_of(theirs, implementation)
    batch = inputs(theirs.config, [12, 12, 12])
    ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    if left:
        ids[1, :3], mask[1, :3] = theirs.config.pad_token_id, 0
    source = source_of(theirs.config) if crossed else {}
    got_cache = wanted_cache = None
    steps = []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 9), (9, 12)):
            step = {
                "input_ids": ids[:, start:end],
                "attention_mask": mask[:, :end] if left else None,
                "token_type_ids": types[:, start:end],
            }
            wanted = theirs(**step, **source, past_key_values=wanted_cache, **ASKED)
            got = ours(**step, **source, past_key_values=got_cache, **ASKED)
            same(got, wanted, mask[:, start:end].bool())
            got_cache, wanted_cache = got.past_key_values, wanted.past_key_values
            steps.append(got.logits)
        assert len(got_cache) == 2
        assert got_cache.get_seq_length() == 12
        kept = wanted_cache.self_attention_cache if crossed else wanted_cache
        for (keys, values), theirs_of_layer in zip(got_cache, kept, strict=True):
            real = mask.bool()
            close(keys.transpose(1, 2)[real], theirs_of_layer[0].transpose(1, 2)[real])
            close(values.transpose(1, 2)[real], theirs_of_layer[1].transpose(1, 2)[real])
        if not left:
            close(torch.cat(steps, 1), ours(ids, token_type_ids=types, **source, use_cache=False).logits)


def test_left_padded_steps_are_the_text_alone():
    """With positions given, what a padded row is told step by step is what the text alone is told at once."""
    ours = ours_of(reference("XLMRobertaForCausalLM", **SHAPES[0], is_decoder=True))
    ids = inputs(ours.config, [7])["input_ids"]
    padded = torch.cat([torch.full((1, 4), ours.config.pad_token_id), ids], 1)
    mask = torch.tensor([[0] * 4 + [1] * 7])
    places = torch.cat([torch.ones(1, 4), torch.arange(2, 9)[None]], 1).long()
    cache = DynamicCache(config=ours.config)
    assert (len(cache), cache.get_seq_length()) == (2, 0)
    parts = []
    with torch.no_grad():
        for window in (slice(0, 6), slice(6, 7), slice(7, 11)):
            step = ours(
                padded[:, window],
                mask[:, : window.stop],
                position_ids=places[:, window],
                past_key_values=cache,
            )
            parts.append(step.logits)
        close(torch.cat(parts, 1)[:, 4:], ours(ids).logits)


def test_the_source_is_projected_once():
    ours = ours_of(reference("XLMRobertaModel", **SHAPES[0], **DECODER))
    ids = inputs(ours.config, [6, 6, 6])["input_ids"]
    source = source_of(ours.config)
    with torch.no_grad():
        wanted = ours(ids, **source, use_cache=False).last_hidden_state[:, 4:]
        cache = ours(ids[:, :4], **source).past_key_values
        calls = [0]
        for block in ours.encoder.layer:
            for projection in (block.crossattention.self.key, block.crossattention.self.value):
                projection.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        again = DynamicCache()
        ours(ids[:, :4], **source, past_key_values=again)
        assert calls == [4]
        close(ours(ids[:, 4:], **source, past_key_values=again).last_hidden_state, wanted)
        mask = {"encoder_attention_mask": source["encoder_attention_mask"]}
        close(ours(ids[:, 4:], **mask, past_key_values=cache).last_hidden_state, wanted)
        assert calls == [4]


def test_a_cache_can_be_cropped_reordered_and_repeated():
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[0], **DECODER)
    ours = ours_of(theirs)
    ids = inputs(ours.config, [8, 8, 8])["input_ids"]
    source = source_of(ours.config)
    order = torch.tensor([2, 0, 0, 1])

    def cached(rows: torch.Tensor, length: int) -> DynamicCache:
        some = {key: x[rows] for key, x in source.items()}
        return ours(ids[rows, :length], **some).past_key_values

    def step(cache: DynamicCache, rows: torch.Tensor) -> torch.Tensor:
        some = {key: x[rows] for key, x in source.items()}
        return ours(ids[rows, 6:], **some, past_key_values=cache).logits

    rows = torch.arange(3)
    with torch.no_grad():
        wanted = step(cached(rows, 6), rows)
        for length in (-2, 6):
            cropped = cached(rows, 8)
            cropped.crop(length)
            assert cropped.get_seq_length() == 6
            close(step(cropped, rows), wanted)
        cache = cached(rows, 6)
        cache.reorder_cache(order)
        close(step(cache, order), wanted[order])
        cache = cached(rows, 6)
        cache.batch_repeat_interleave(2)
        close(step(cache, rows.repeat_interleave(2)), wanted.repeat_interleave(2, 0))
        cache.reset()
        assert len(cache) == cache.get_seq_length() == cache.get_cross_length() == 0


def test_an_encoder_may_have_a_prefix():
    """Keys and values put before an encoder's own, as prefix tuning does."""
    theirs = reference("XLMRobertaModel", **SHAPES[0])
    ours = ours_of(theirs)
    prefix = torch.randn(2, 2, 2, 4, 3, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    ids = inputs(ours.config, [5, 3])["input_ids"]
    theirs_prefix, ours_prefix = transformers.DynamicCache(), DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        theirs_prefix.update(keys, values, layer)
        ours_prefix.update(keys, values, layer)
    with torch.no_grad():
        wanted = theirs(ids, mask, past_key_values=theirs_prefix)
        same(ours(ids, mask, past_key_values=ours_prefix), wanted, mask[:, 3:].bool())


@pytest.mark.parametrize("implementation", BACK_ENDS)
def test_masks_of_four_dimensions_say_it_all(implementation):
    theirs = reference("XLMRobertaModel", **SHAPES[0], **DECODER)
    ours = ours_of(theirs, implementation)
    ids = inputs(theirs.config, [6, 6, 6])["input_ids"]
    generator = torch.Generator().manual_seed(5)
    states = source_of(theirs.config)["encoder_hidden_states"]
    seen = (torch.rand(3, 1, 6, 6, generator=generator) < 0.6) | torch.eye(6, dtype=torch.bool)
    source_seen = (torch.rand(3, 4, 6, 5, generator=generator) < 0.6) | torch.tensor([True] + [False] * 4)
    with torch.no_grad():
        for own, other in (
            (seen, source_seen),
            (torch.ones(3, 1, 6, 6, dtype=torch.bool), torch.randn(3, 1, 6, 5, generator=generator)),
            (torch.randn(3, 4, 6, 6, generator=generator), source_seen),
        ):
            case = {"attention_mask": own, "encoder_hidden_states": states, "encoder_attention_mask": other}
            close(ours(ids, **case).last_hidden_state, theirs(ids, **case).last_hidden_state)


def test_logits_to_keep():
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[0], is_decoder=True)
    ours = ours_of(theirs)
    ids = inputs(theirs.config, [6, 6])["input_ids"]
    with torch.no_grad():
        for which in (
            0,
            1,
            4,
            torch.tensor([0, 3]),
            torch.tensor([[0, 3, 5], [1, 1, 2]]),
            torch.rand(2, 6, generator=torch.Generator().manual_seed(0)) < 0.5,
        ):
            close(ours(ids, logits_to_keep=which).logits, theirs(ids, logits_to_keep=which).logits)


def test_loss_and_the_gradient_of_every_parameter():
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[0], **DECODER)
    ours = ours_of(theirs)
    batch = {**inputs(theirs.config, [7, 4, 5]), **source_of(theirs.config)}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    wanted, got = theirs(**batch, labels=labels), ours(**batch, labels=labels)
    same(got, wanted, batch["attention_mask"].bool())
    wanted.loss.backward()
    got.loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters(remove_duplicate=False)}
    for key, parameter in ours.named_parameters():
        close(parameter.grad, gradients[key], key)


def test_gradients_flow_through_the_cache():
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[0], is_decoder=True)
    ours = ours_of(theirs)
    ids = inputs(theirs.config, [6])["input_ids"]
    answers = []
    for model in (theirs, ours):
        cache = model(ids[:, :4]).past_key_values
        model(ids[:, 4:], past_key_values=cache).logits.square().mean().backward()
        answers.append({key: p.grad for key, p in model.named_parameters(remove_duplicate=False)})
    for key, gradient in answers[0].items():
        close(answers[1][key], gradient, key)


def test_dropout_in_training_draws_as_the_references():
    theirs = reference("XLMRobertaModel", **SHAPES[0], **DECODER, attn_implementation="eager")
    batch = {**inputs(theirs.config, [9, 4, 4]), **source_of(theirs.config)}
    answers = []
    for model in (ours_of(theirs, "eager"), theirs):
        torch.manual_seed(11)
        answers.append(model.train()(**batch, **ASKED))
    same(answers[0], answers[1], batch["attention_mask"].bool())


def test_saved_by_transformers_loaded_here_and_back(tmp_path):
    theirs = reference("XLMRobertaForCausalLM", **SHAPES[1], **DECODER)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = xlmr_ray.modeling.xlm_roberta.XLMRobertaForCausalLM.from_pretrained(tmp_path / "theirs")
    assert ours.config.is_decoder
    assert not ours.load_report.missing
    batch = {**inputs(theirs.config, [5, 5, 5]), **source_of(theirs.config)}
    with torch.no_grad():
        same(ours(**batch), theirs(**batch), torch.ones(3, 5, dtype=torch.bool))
    ours.save_pretrained(tmp_path / "ours")
    again, info = transformers.XLMRobertaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for (key, wanted), got in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(wanted, got), key


@pytest.mark.parametrize("implementation", BACK_ENDS)
def test_packed_sequences_are_causal_too(implementation):
    ours = ours_of(reference("XLMRobertaModel", **SHAPES[0], is_decoder=True), implementation)
    lengths = (5, 1, 3, 3)
    batch = inputs(ours.config, list(lengths))
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        wanted = ours(**batch, use_cache=False).last_hidden_state[real]
        x = ours.embeddings(
            batch["input_ids"][real],
            torch.cat([torch.arange(2, 2 + length) for length in lengths]),
            batch["token_type_ids"][real],
        )
        close(ours.encoder(x, Packed.of(lengths, causal=True)), wanted)
        ours.encoder.fuse()
        close(ours.encoder(x, Packed.of(lengths, causal=True)), wanted)


def test_fused_layers_keep_their_cross_attention():
    ours = ours_of(reference("XLMRobertaModel", **SHAPES[0], **DECODER))
    batch = {**inputs(ours.config, [6, 4, 5]), **source_of(ours.config)}
    with torch.no_grad():
        wanted = ours(**batch).last_hidden_state
        ours.encoder.fuse()
        close(ours(**batch).last_hidden_state, wanted)


def test_what_a_decoder_refuses():
    def config(**values: object) -> xlmr_ray.XLMRobertaConfig:
        return xlmr_ray.XLMRobertaConfig(
            vocab_size=30, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, **values
        )

    with pytest.raises(UserError, match="is_decoder=True, too"):
        Encoder(config(add_cross_attention=True))
    states = torch.zeros(1, 3, 16)
    ids = torch.tensor([[5, 6]])
    for alone in (config(), config(is_decoder=True)):
        with pytest.raises(UserError, match="encoder_hidden_states: this model has no cross-attention"):
            xlmr_ray.modeling.xlm_roberta.XLMRobertaModel(alone)(ids, encoder_hidden_states=states)
    model = xlmr_ray.modeling.xlm_roberta.XLMRobertaModel(config(is_decoder=True, add_cross_attention=True))
    with pytest.raises(UserError, match=r"encoder_hidden_states: got shape \(1, 3, 8\), expected \(1, length, 16\)"):
        model(ids, encoder_hidden_states=states[..., :8])
    with pytest.raises(UserError, match="encoder_attention_mask: there are no encoder_hidden_states"):
        model(ids, encoder_attention_mask=torch.ones(1, 3))
    with pytest.raises(UserError, match=r"encoder_attention_mask: got shape \(1, 4\), expected \(1, 3\)"):
        model(ids, encoder_hidden_states=states, encoder_attention_mask=torch.ones(1, 4))
    with pytest.raises(UserError, match="past_key_values: expected a DynamicCache, got tuple"):
        model(ids, past_key_values=((states, states),))
    cache = model(ids).past_key_values
    with pytest.raises(UserError, match=r"attention_mask: got shape \(1, 2\), expected \(1, 4\) or "):
        model(ids, torch.ones(1, 2), past_key_values=cache)
    with pytest.raises(UserError, match="use the padded layout"):
        model.encoder(torch.zeros(4, 16), Packed.of([4]), Trace(attentions=[]))
    with pytest.warns(UserWarning, match="use_cache: only a decoder"):
        assert xlmr_ray.modeling.xlm_roberta.XLMRobertaModel(config())(ids, use_cache=True).past_key_values is None
    with pytest.warns(UserWarning, match="does not see later tokens"):
        xlmr_ray.modeling.xlm_roberta.XLMRobertaForMaskedLM(config(is_decoder=True))
    with pytest.warns(UserWarning, match="sees later tokens"):
        xlmr_ray.modeling.xlm_roberta.XLMRobertaForCausalLM(config())
