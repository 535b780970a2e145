"""Documents for each task, and the model of `tests/serve/server.py` that they go to."""

from typing import Any

from tests.tasks.texts import languages

TEXTS = [articles[0] for articles in languages().values()][:12]
# task -> model, columns of documents, options
CASES: dict[str, tuple[str, dict[str, list[Any]], dict[str, Any]]] = {
    "embedding": ("mini", {"text": TEXTS}, {}),
    "feature-extraction": ("mini", {"text": TEXTS[:3]}, {"layers": [0, -1]}),
    "fill-mask": ("masked", {"text": [f"{text[:80]} <mask> {text[80:160]}" for text in TEXTS]}, {"top_k": 3}),
    "multiple-choice": ("choice", {"text": TEXTS[:4], "choices": [TEXTS[4:7], TEXTS[2:4], TEXTS[:2], TEXTS[3:8]]}, {}),
    "pseudo-perplexity": ("masked", {"text": [text[:60] for text in TEXTS[:3]]}, {"passes": 3}),
    "question-answering": ("answers", {"question": TEXTS[:4], "context": [" ".join(TEXTS)] * 4}, {"top_k": 2}),
    "rerank": ("relevance", {"text": TEXTS[:6], "text_pair": TEXTS[6:]}, {}),
    "sentence-similarity": ("mini", {"text": TEXTS[:6], "text_pair": TEXTS[6:]}, {}),
    "text-classification": ("script", {"text": TEXTS}, {"top_k": None}),
    "token-classification": ("entities", {"text": TEXTS}, {"aggregation_strategy": "simple"}),
    "zero-shot-classification": ("entailment", {"text": TEXTS[:3]}, {"candidate_labels": ["law", "food", "war"]}),
}
