"""Losses against transformers' own loss functions, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss import loss_utils as reference

from xlmr_ray import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.heads import LMHead
from xlmr_ray.model.losses import classification_loss, lm_loss, question_answering_loss, token_loss

VOCAB = 61


@pytest.fixture(scope="module")
def head() -> LMHead:
    torch.manual_seed(0)
    head = LMHead(XLMRobertaConfig(vocab_size=VOCAB, hidden_size=12, num_attention_heads=2))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def gradients(loss, head, hidden):
    head.zero_grad()
    hidden = hidden.clone().requires_grad_()
    value = loss(hidden)
    value.backward()
    return [value.detach(), hidden.grad, *[parameter.grad.clone() for parameter in head.parameters()]]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    chunk=st.integers(1, 40),
    labelled=st.sampled_from([0.0, 0.15, 1.0]),
    seed=st.integers(0, 999),
)
def test_language_modelling_loss_and_gradients_are_the_references(head, shape, chunk, labelled, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, 12, generator=generator)
    labels = torch.randint(0, VOCAB, shape, generator=generator)
    labels[torch.rand(*shape, generator=generator) >= labelled] = -100
    got = gradients(lambda x: lm_loss(x, labels, head, chunk=chunk), head, hidden)
    wanted = gradients(lambda x: reference.ForMaskedLMLoss(head(x), labels, VOCAB), head, hidden)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_in_half_precision_are_as_near_as_the_whole(head, dtype):
    hidden = torch.randn(200, 12, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(200) % VOCAB
    exact = gradients(lambda x: lm_loss(x, labels, head), head, hidden)
    try:
        head.to(dtype)
        chunked = gradients(lambda x: lm_loss(x, labels, head, chunk=7), head, hidden.to(dtype))
        whole = gradients(lambda x: reference.ForMaskedLMLoss(head(x), labels, VOCAB), head, hidden.to(dtype))
    finally:
        head.float()
    for a, b, wanted in zip(chunked, whole, exact, strict=True):
        # Gradients of 29 chunks are added up in the parameter's own precision, rounding once a chunk.
        assert (a.float() - wanted).norm() <= 2 * (b.float() - wanted).norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_acts_in_the_chunks_and_in_their_recomputation(head, dtype):
    hidden = torch.randn(30, 12, generator=torch.Generator().manual_seed(4)).to(dtype)
    labels = torch.arange(30)

    def cast(loss):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return loss(x)

        return run

    got = gradients(cast(lambda x: lm_loss(x, labels, head, chunk=30)), head, hidden)
    wanted = gradients(cast(lambda x: reference.ForMaskedLMLoss(head(x), labels, VOCAB)), head, hidden)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("chunk", [3, 10])
def test_no_tensor_is_larger_than_a_chunk_of_logits(chunk):
    head = LMHead(XLMRobertaConfig(vocab_size=VOCAB, hidden_size=2, num_attention_heads=2))
    hidden = torch.randn(4, 25, 2, requires_grad=True)
    with Largest() as largest:
        lm_loss(hidden, torch.zeros(4, 25, dtype=torch.long), head, chunk=chunk).backward()
    assert largest.elements == max(chunk * VOCAB, hidden.numel())


def test_labels_that_are_none_are_refused(head):
    hidden = torch.zeros(2, 3, 12)
    with pytest.raises(UserError, match=r"labels: got shape \(2, 2\), expected one for each token, \(2, 3\)"):
        lm_loss(hidden, torch.zeros(2, 2, dtype=torch.long), head)
    for wrong, least_to_most in ((VOCAB, "0 to 61"), (-1, "-1 to 0")):
        labels = torch.zeros(2, 3, dtype=torch.long)
        labels[0, 0] = wrong
        with pytest.raises(UserError, match=f"0 to 60, got {least_to_most}"):
            lm_loss(hidden, labels, head)


@settings(max_examples=50, deadline=None)
@given(
    positions=st.lists(st.tuples(st.integers(-9, 15), st.integers(-9, 15)), min_size=1, max_size=5),
    column=st.booleans(),
    seed=st.integers(0, 999),
)
def test_question_answering_loss_is_the_references(positions, column, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, len(positions), 7, generator=generator)
    start, end = torch.tensor(positions).T
    if column:
        start, end = start[:, None], end[:, None]
    results = []
    for loss in (question_answering_loss, reference.ForQuestionAnsweringLoss):
        given_logits = logits.clone().requires_grad_()
        value = loss(given_logits[0], given_logits[1], start, end)
        value.backward()
        results.append((value.detach(), given_logits.grad))
    torch.testing.assert_close(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize(
    ("values", "labels", "problem"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), "regression"),
        ({"num_labels": 1}, torch.tensor([[0.5], [2.0]]), "regression"),
        ({"num_labels": 3}, torch.tensor([2, -100]), "single_label_classification"),
        ({"num_labels": 3}, torch.tensor([1.0, 0.0, 0.0]).repeat(2, 1), "multi_label_classification"),
        ({"num_labels": 3, "problem_type": "regression"}, torch.ones(2, 3), "regression"),
    ],
)
def test_classification_loss_is_the_references_and_remembers_what_it_inferred(values, labels, problem):
    ours, theirs = XLMRobertaConfig(**values), XLMRobertaConfig(**values)
    logits = torch.randn(2, values["num_labels"], generator=torch.Generator().manual_seed(5))
    got = classification_loss(logits, labels, ours)
    torch.testing.assert_close(got, reference.ForSequenceClassificationLoss(labels, logits, theirs))
    assert ours.problem_type == theirs.problem_type == problem


def test_token_loss_is_the_references():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(6))
    labels = torch.tensor([[0, 1, -100, 2], [-100, -100, 1, 0]])
    wanted = reference.ForTokenClassification(logits, labels, XLMRobertaConfig(num_labels=3))
    torch.testing.assert_close(token_loss(logits, labels), wanted)
