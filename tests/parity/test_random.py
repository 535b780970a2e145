"""Every class against transformers over random configurations and inputs: all output fields, losses, the gradient of
every parameter, steps with a cache, and half precision.

`XLMR_RAY_SEEDS` is the number of cases a class and test (4). A case is made from its name and seed alone:
`pytest "tests/parity/test_random.py::test_fields_losses_and_gradients[XLMRobertaModel-17]"` with 18 seeds or more.
"""

import itertools
import os
import random
from dataclasses import dataclass, field

import pytest
import torch

from tests.parity.reference import ours_of, reference
from xlmr_ray.model.activations import ACTIVATIONS

pytestmark = pytest.mark.filterwarnings(
    "ignore:output_attentions", "ignore:XLMRobertaFor", "ignore:Using a target size"
)

SEEDS = range(int(os.environ.get("XLMR_RAY_SEEDS", "4")))
MAX, MEDIAN = 1e-5, 1e-6
HEADS = ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"]
HEADS += ["ForMultipleChoice", "ForQuestionAnswering", "ForCausalLM"]
NAMES = [f"XLMRoberta{kind}" for kind in ["Model", *HEADS]]
FIRST_TOKEN = ("XLMRobertaForSequenceClassification", "XLMRobertaForMultipleChoice")


@dataclass
class Case:
    """Models with the same weights, what to call them with, and the tokens `(B, S)` whose answers mean something."""

    ours: torch.nn.Module
    theirs: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    real: torch.Tensor
    asked: dict[str, bool] = field(default_factory=dict)


class Draw(random.Random):
    """Random numbers and tensors from one seed."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.torch = torch.Generator().manual_seed(self.randrange(1 << 30))

    def ids(self, shape: tuple[int, ...], end: int, start: int = 0) -> torch.Tensor:
        return torch.randint(start, end, shape, generator=self.torch)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.torch)

    def mask(self, rows: int, length: int, left: bool) -> torch.Tensor:
        """Of texts of random lengths, one of which has `length` tokens."""
        lengths = torch.tensor([self.randint(1, length) for _ in range(rows)])
        lengths[self.randrange(rows)] = length
        places = torch.arange(length).expand(rows, length)
        return (places >= length - lengths[:, None] if left else places < lengths[:, None]).long()


def draw_config(draw: Draw, name: str) -> dict[str, object]:
    heads, chances = draw.randint(1, 5), {"XLMRobertaForCausalLM": 0.9, "XLMRobertaModel": 0.5}
    decoder = draw.random() < chances.get(name, 0.3)
    return {
        "vocab_size": draw.randint(20, 120),
        "hidden_size": heads * draw.randint(2, 13),
        "num_attention_heads": heads,
        "num_hidden_layers": draw.randint(1, 3),
        "intermediate_size": draw.randint(1, 70),
        "hidden_act": draw.choice(sorted(ACTIVATIONS)),
        "type_vocab_size": draw.choice([1, 2, 16]),
        "pad_token_id": draw.choice([0, 1, 3, 7]),
        "layer_norm_eps": draw.choice([1e-12, 1e-5]),
        "tie_word_embeddings": draw.random() < 0.7,
        "is_decoder": decoder,
        "add_cross_attention": decoder and draw.random() < 0.6,
        "num_labels": 2 if name == "XLMRobertaForQuestionAnswering" else draw.choice([1, 2, 5]),
    }


def draw_attention_mask(draw: Draw, mask: torch.Tensor, implementation: str) -> torch.Tensor | None:
    """The mask `(rows, S)` itself, or one of four dimensions, or none."""
    kind = draw.choice(["two", "two", "two", "bool", "float", "none"])
    if kind == "none":
        return None
    rows, length = mask.shape
    if kind == "two" or (kind == "bool" and implementation == "eager"):
        return mask  # the reference's eager attention adds booleans to the scores as zeros and ones
    seen = (torch.rand(rows, 1, length, length, generator=draw.torch) < 0.6) & mask[:, None, None].bool()
    seen |= torch.eye(length, dtype=torch.bool)
    return seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def draw_labels(draw: Draw, name: str, config: object, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, length = mask.shape
    if name in ("XLMRobertaForMaskedLM", "XLMRobertaForCausalLM", "XLMRobertaForTokenClassification"):
        classes = config.num_labels if name == "XLMRobertaForTokenClassification" else config.vocab_size
        labels = draw.ids((rows, length), classes)
        left_out = torch.rand(rows, length, generator=draw.torch) < draw.choice([0.0, 0.5, 0.85])
        return {"labels": labels.masked_fill(left_out | (mask == 0), -100)}
    if name == "XLMRobertaForQuestionAnswering":
        return {key: draw.ids((rows,), length + 3, -2) for key in ("start_positions", "end_positions")}
    if name == "XLMRobertaForMultipleChoice":
        return {"labels": draw.ids((rows // 3,), 3)}
    if name == "XLMRobertaForSequenceClassification":
        if config.num_labels == 1:
            return {"labels": draw.normal(rows)}
        wanted = draw.choice([None, "regression", "single_label_classification", "multi_label_classification"])
        config.problem_type = wanted
        if wanted == "regression":
            return {"labels": draw.normal(rows, config.num_labels)}
        if wanted == "multi_label_classification" or (wanted is None and draw.random() < 0.5):
            return {"labels": draw.ids((rows, config.num_labels), 2).float()}
        return {"labels": draw.ids((rows,), config.num_labels)}
    return {}


def draw_case(name: str, seed: int) -> Case:
    draw = Draw(f"{name} {seed}")
    implementation = draw.choice(["eager", "sdpa"])
    values = draw_config(draw, name)
    theirs = reference(name, seed, **values, attn_implementation=implementation)
    config = theirs.config
    rows, length = (
        3 * draw.randint(1, 2) if name == "XLMRobertaForMultipleChoice" else draw.randint(1, 4),
        draw.randint(2, 13),
    )
    # A decoder's padding on the left sees nothing at all: heads of the first token have no answer there.
    reads_padding = config.is_decoder and (name in FIRST_TOKEN or name == "XLMRobertaForQuestionAnswering")
    left = draw.random() < 0.4 and not reads_padding
    mask = draw.mask(rows, length, left)
    attention_mask = draw_attention_mask(draw, mask, implementation)
    ids = draw.ids((rows, length), config.vocab_size).masked_fill(mask == 0, config.pad_token_id)
    inputs: dict[str, torch.Tensor] = {"input_ids": ids}
    if draw.random() < 0.3:
        inputs = {"inputs_embeds": draw.normal(rows, length, config.hidden_size)}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
    if draw.random() < 0.6:
        inputs["token_type_ids"] = draw.ids((rows, length), config.type_vocab_size)
    if draw.random() < 0.3:
        inputs["position_ids"] = draw.ids((rows, length), config.max_position_embeddings)
    if config.add_cross_attention and draw.random() < 0.8:
        source = draw.randint(1, 9)
        inputs["encoder_hidden_states"] = draw.normal(rows, source, config.hidden_size)
        if draw.random() < 0.7:
            inputs["encoder_attention_mask"] = draw.mask(rows, source, draw.random() < 0.3)
    labels = draw_labels(draw, name, config, mask)
    if name == "XLMRobertaForMultipleChoice":
        if attention_mask is not None and attention_mask.dim() == 4:
            inputs["attention_mask"] = mask  # choices are folded into the batch: the reference takes two dimensions
        inputs = {key: x.unflatten(0, (rows // 3, 3)) for key, x in inputs.items() if not key.startswith("encoder_")}
    four = attention_mask is not None and attention_mask.dim() == 4
    hidden_by_mask = config.is_decoder and left and attention_mask is not None and not four
    real = mask.bool() if hidden_by_mask else torch.ones_like(mask, dtype=torch.bool)
    asked = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    return Case(ours_of(theirs, implementation), theirs, inputs, labels, real, asked)


def differences(got: torch.Tensor | None, wanted: torch.Tensor | None, name: str) -> torch.Tensor:
    """Absolute differences, in units of the largest number wanted where that is above 1."""
    if got is None or wanted is None:  # no gradient and a gradient of zeros are the same
        got = torch.zeros_like(wanted) if got is None and wanted is not None else got
        wanted = torch.zeros_like(got) if wanted is None and got is not None else wanted
        if got is None or wanted is None:
            return torch.zeros(1)
    got, wanted = got.detach(), wanted.detach()
    assert got.shape == wanted.shape, name
    assert torch.equal(got.isnan(), wanted.isnan()), name
    got, wanted = got.nan_to_num(), wanted.nan_to_num()
    return (got - wanted).abs().flatten() / max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)


def near(pairs: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]) -> None:
    """Every number within `MAX`, and of each kind half of them within `MEDIAN`."""
    for name, (got, wanted) in pairs.items():
        apart = differences(got, wanted, name)
        if apart.numel():
            assert float(apart.max()) <= MAX, f"{name}: {float(apart.max()):.1e}"
            assert float(apart.median()) <= MEDIAN, f"{name}: median {float(apart.median()):.1e}"


def pairs_of(got: object, wanted: object, real: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The tensors of two outputs, side by side, where the tokens are real."""
    assert list(got.keys()) == list(wanted.keys())
    pairs = {}
    for name, theirs in wanted.items():
        if name == "past_key_values":
            assert got[name].get_seq_length() == theirs.get_seq_length()
            continue
        several = isinstance(theirs, tuple)
        assert len(got[name]) == len(theirs) if several else True, name
        for i, (a, b) in enumerate(zip(got[name], theirs, strict=True) if several else [(got[name], theirs)]):
            if name in ("attentions", "cross_attentions"):
                a, b = a.transpose(1, 2), b.transpose(1, 2)
            pairs[f"{name}[{i}]"] = (at_real(a, real), at_real(b, real))
    return pairs


def at_real(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """What `x`, `(B, S, ...)` or `(B, ...)`, holds for real tokens or texts that begin with one; a loss, and scores of
    choices, as they are.
    """
    if x.shape[:2] == real.shape:
        return x[real]
    return x[real[:, 0]] if x.dim() == 2 and len(x) == len(real) else x


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """By every name that a parameter has."""
    gradients = {key: p.grad for key, p in model.named_parameters(remove_duplicate=False)}
    if "lm_head.bias" in gradients and gradients["lm_head.bias"] is None:  # untied, the reference does not use it
        gradients["lm_head.bias"] = gradients["lm_head.decoder.bias"]
    return gradients


def objective(output: object, real: torch.Tensor) -> torch.Tensor:
    """The loss, or where a class has none, something that every number of the answer is part of."""
    if output.get("loss") is not None:
        return output["loss"]
    total = torch.tensor(0.0)
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits", "pooler_output"):
        x = output.get(name)
        if x is not None:
            x = at_real(x, real)
            total = total + (x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum()
    return total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_fields_losses_and_gradients(name, seed):
    case = draw_case(name, seed)
    outputs, leaves = [], []
    for model in (case.ours, case.theirs):
        given = dict(case.inputs)
        for key in ("inputs_embeds", "encoder_hidden_states"):
            if key in given:
                given[key] = given[key].clone().requires_grad_()
        outputs.append(model(**given, **case.labels, **case.asked))
        objective(outputs[-1], case.real).backward()
        leaves.append({key: x.grad for key, x in given.items() if x.is_floating_point() and x.requires_grad})
    near(pairs_of(*outputs, case.real))
    near({key: (leaves[0][key], leaves[1][key]) for key in leaves[0]})
    wanted = gradients_of(case.theirs)
    near({key: (gradient, wanted[key]) for key, gradient in gradients_of(case.ours).items()})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_without_labels_as_objects_and_as_tuples(name, seed):
    case = draw_case(name, 10_000 + seed)
    with torch.no_grad():
        wanted, got = case.theirs(**case.inputs), case.ours(**case.inputs)
        near(pairs_of(got, wanted, case.real))
        as_tuple = case.ours(**case.inputs, return_dict=False)
        assert isinstance(as_tuple, tuple)
        for a, b in zip(as_tuple, got.to_tuple(), strict=True):
            assert not isinstance(b, torch.Tensor) or torch.equal(a, b)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["XLMRobertaModel", "XLMRobertaForCausalLM"])
def test_steps_with_a_cache_are_the_whole(name, seed):
    """Ours step by step against ours at once, and against the reference's steps."""
    draw = Draw(f"cached {name} {seed}")
    implementation = draw.choice(["eager", "sdpa"])
    values = {**draw_config(draw, name), "is_decoder": True, "add_cross_attention": draw.random() < 0.5}
    theirs = reference(name, seed, **values, attn_implementation=implementation)
    ours, config = ours_of(theirs, implementation), theirs.config
    rows, length = draw.randint(1, 3), draw.randint(3, 12)
    left = draw.random() < 0.5
    mask = draw.mask(rows, length, left=True) if left else torch.ones(rows, length, dtype=torch.long)
    whole = {"input_ids": draw.ids((rows, length), config.vocab_size, 8).masked_fill(mask == 0, config.pad_token_id)}
    if draw.random() < 0.4:
        whole = {"inputs_embeds": draw.normal(rows, length, config.hidden_size)}
    whole["token_type_ids"] = draw.ids((rows, length), config.type_vocab_size)
    if left or "inputs_embeds" in whole:  # positions that a cache does not count as the whole does
        whole["position_ids"] = mask.cumsum(1) * mask + config.pad_token_id
    source = {}
    if config.add_cross_attention:
        source["encoder_hidden_states"] = draw.normal(rows, 5, config.hidden_size)
        source["encoder_attention_mask"] = draw.mask(rows, 5, left=False)
    cuts = sorted({0, length, *(draw.randint(1, length - 1) for _ in range(3))})
    caches: list[object] = [None, None]
    steps: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        answer = ours(**whole, **source, attention_mask=mask)[0]
        for start, end in itertools.pairwise(cuts):
            step = {key: x[:, start:end] for key, x in whole.items()}
            for place, model in enumerate((ours, theirs)):
                masked = {"attention_mask": mask[:, :end]} if left else {}
                output = model(**step, **source, **masked, past_key_values=caches[place], use_cache=True)
                caches[place] = output.past_key_values
                assert caches[place].get_seq_length() == end
                steps[place].append(output[0])
        got, wanted = torch.cat(steps[0], 1), torch.cat(steps[1], 1)
    real = mask.bool()
    near({"whole": (got[real], answer[real]), "steps": (got[real], wanted[real])})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_as_near_as_the_references(name, dtype):
    """The distance of answers, losses and gradients to those in fp32, with weights that half precision holds exactly,
    so that computing alone makes it: over some cases, at most 1.5 times the reference's own.

    Both round at the same places, and most cases have a ratio of 1.00; where kernels add in another order it was 0.4 to
    1.8 in single cases, 0.6 to 1.1 over twelve. The reference's loss of masked tokens is in half precision itself, and
    further off.
    """
    squares = {"ours": {}, "theirs": {}}
    for seed in range(6):
        case = draw_case(name, 20_000 + seed)
        for model in (case.ours, case.theirs):
            model.to(dtype).float()
        objective(case.ours(**case.inputs, **case.labels), case.real).backward()
        used = [key for key, gradient in gradients_of(case.ours).items() if gradient is not None]
        exact = run_in(case, case.theirs, torch.float32, used)
        for key, model in (("ours", case.ours), ("theirs", case.theirs)):
            for field_name, x in run_in(case, model, dtype, used).items():
                apart = differences(x, exact[field_name], field_name)
                squares[key][field_name] = squares[key].get(field_name, 0.0) + float(apart.square().sum())
    for field_name, wanted in squares["theirs"].items():
        assert squares["ours"][field_name] ** 0.5 <= 1.5 * wanted**0.5 + 1e-5, field_name


def run_in(case: Case, model: torch.nn.Module, dtype: torch.dtype, used: list[str]) -> dict[str, torch.Tensor]:
    """The answer, the loss and the gradients of the `used` parameters (as one), in fp32, of a model run in `dtype`."""
    model.to(dtype)
    given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in case.inputs.items()}
    if given.get("attention_mask") is not None and given["attention_mask"].is_floating_point():
        given["attention_mask"] = case.inputs["attention_mask"].clamp(min=torch.finfo(dtype).min).to(dtype)
    labels = {key: x.to(dtype) if x.is_floating_point() else x for key, x in case.labels.items()}
    output = model(**given, **labels)
    model.zero_grad()
    objective(output, case.real).backward()
    found = {name: at_real(x, case.real) for name, x in output.items() if isinstance(x, torch.Tensor)}
    gradients = gradients_of(model)
    found["gradients"] = torch.cat([gradients[key].flatten() for key in used])
    model.float()
    return {name: x.detach().float() for name, x in found.items()}
