"""Calls of `pipeline` that scripts make: (arguments of its making, arguments of its call), by task."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset

A, B, C = (
    "All human beings are born free.",
    "Alle Menschen sind frei geboren.",
    "Tous les êtres humains naissent libres",
)
LONG = " ".join([A, B, C] * 6)
PAIR = {"text": A, "text_pair": B}
M = "All human <mask> are born free."
MM = "All <mask> beings are born <mask>."
LABELS = ["freedom", "work", "school"]


def given(*inputs: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return inputs, options


def generator() -> Iterator[str]:
    yield from (A, B, C)


class Rows(Dataset[str]):
    """A data set: a length and places."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> str:
        return [A, B, C][index]


# Inputs that can be read once are made anew for each call.
Call = tuple[dict[str, Any], tuple[tuple[Any, ...], dict[str, Any]] | Callable[[], Any]]

CALLS: dict[str, list[Call]] = {
    "text-classification": [
        ({}, given(A)),
        ({}, given([A])),
        ({}, given([A, B])),
        ({}, given(A, top_k=2)),
        ({}, given(A, top_k=1)),
        ({}, given(A, top_k=None)),
        ({}, given([A, B], top_k=1)),
        ({}, given([A, B], top_k=2)),
        ({}, given([A], top_k=2)),
        ({}, given([A], top_k=1)),
        ({"top_k": 1}, given([A, B])),
        ({"top_k": 1}, given(A)),
        ({"top_k": None}, given(A)),
        ({"top_k": 3}, given([A, B])),
        ({}, given(PAIR)),
        ({}, given([PAIR])),
        ({}, given([PAIR, PAIR])),
        ({}, given(PAIR, top_k=2)),
        ({}, given([{"text": A}, {"text": B}])),
        ({}, given(A, function_to_apply="sigmoid")),
        ({}, given(A, function_to_apply="none")),
        ({"function_to_apply": "softmax"}, given(A)),
        ({}, given([A, LONG], batch_size=2, truncation=True, padding=True)),
        ({"batch_size": 2}, given([A, B, C])),
        ({"truncation": True, "max_length": 12}, given(LONG)),
        ({"padding": True, "truncation": True}, given([A, LONG])),
        ({}, given(LONG, truncation=True, max_length=16, padding="max_length")),
        ({"device_map": "cpu"}, given(A)),
        ({"torch_dtype": "float32"}, given(A)),
        ({"dtype": "float32", "device": -1}, given(A)),
        ({"model_kwargs": {"attn_implementation": "eager"}}, given(A)),
        ({}, lambda: given(generator())),
        ({}, lambda: given(Rows())),
        ({}, lambda: given(Rows(), batch_size=2)),
    ],
    "token-classification": [
        ({}, given(A)),
        ({}, given([A])),
        ({}, given([A, B])),
        ({"aggregation_strategy": "simple"}, given(A)),
        ({"aggregation_strategy": "first"}, given([A, B])),
        ({"aggregation_strategy": "average"}, given(B)),
        ({"aggregation_strategy": "max"}, given(B)),
        ({}, given(A, aggregation_strategy="simple")),
        ({}, given(A, ignore_labels=[])),
        ({"ignore_labels": ["LABEL_1"]}, given(A)),
        ({"aggregation_strategy": "simple", "batch_size": 2}, given([A, B, C])),
        ({}, given(["All", "human", "beings"], is_split_into_words=True)),
        ({}, lambda: given(generator())),
    ],
    "fill-mask": [
        ({}, given(M)),
        ({}, given([M])),
        ({}, given([M, M])),
        ({"top_k": 2}, given(M)),
        ({}, given(M, top_k=3)),
        ({}, given(MM, top_k=2)),
        ({}, given([MM, M], top_k=2)),
        ({}, given(M, targets=["work", "free"])),
        ({"targets": ["work"]}, given(M)),
        ({"tokenizer_kwargs": {"truncation": True}}, given(M)),
        ({}, given(M, tokenizer_kwargs={"truncation": True, "max_length": 20})),
        ({"batch_size": 2}, given([M, M, M])),
    ],
    "feature-extraction": [
        ({}, given(A)),
        ({}, given([A])),
        ({}, given([A, B])),
        ({}, given(A, return_tensors=True)),
        ({"return_tensors": True}, given([A, B])),
        ({"tokenize_kwargs": {"truncation": True, "max_length": 8}}, given(LONG)),
        ({}, given(LONG, truncation=True)),
        ({"truncation": True}, given([A, LONG], batch_size=1)),
        ({}, given(LONG, tokenize_kwargs={"padding": False, "truncation": True, "max_length": 20})),
        ({"batch_size": 1}, given([A, B, C])),  # of several, transformers returns vectors of padding
    ],
    "zero-shot-classification": [
        ({}, given(A, LABELS)),
        ({}, given(A, candidate_labels=LABELS)),
        ({}, given([A], candidate_labels=LABELS)),
        ({}, given([A, B], LABELS)),
        ({}, given(A, "freedom, work")),
        ({}, given(A, candidate_labels=LABELS, multi_label=True)),
        ({}, given(A, candidate_labels=LABELS, hypothesis_template="About {}.")),
        ({}, given(A, candidate_labels=["work"])),
        ({"candidate_labels": LABELS}, given(A)),
        ({"batch_size": 2}, given([A, B], candidate_labels=LABELS)),
    ],
    "text-generation": [
        ({}, given(A, max_new_tokens=4, do_sample=False)),
        ({}, given([A, B], max_new_tokens=4, do_sample=False)),
        ({}, given([A], max_new_tokens=4, do_sample=False)),
        ({}, given(A, max_new_tokens=4, do_sample=False, return_full_text=False)),
        ({}, given(A, max_new_tokens=4, do_sample=False, num_beams=2, num_return_sequences=2)),
        ({}, given(A, max_new_tokens=4, do_sample=False, prefix="Yes: ")),
        ({"batch_size": 2}, given([A, B, C], max_new_tokens=3, do_sample=False)),
        ({}, given(A, max_new_tokens=4, do_sample=False, add_special_tokens=True)),
        ({}, given(A, max_new_tokens=4, do_sample=False, clean_up_tokenization_spaces=False)),
    ],
}
