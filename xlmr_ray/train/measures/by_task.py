"""What is measured of each task's answers: functions of which rows count, so that rows can be drawn again."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.train.measures.calibration_error import calibration_error
from xlmr_ray.train.measures.spans import best_of, exact, f1, span_counts, word_f1
from xlmr_ray.train.objectives.label_names import hot_of, indices, label_numbers, single_names
from xlmr_ray.train.objectives.multiple_choice import right_choices
from xlmr_ray.train.objectives.question_answering import squad_answers
from xlmr_ray.train.objectives.rerank import relevance
from xlmr_ray.train.objectives.token_classification import entities

Rows = NDArray[np.int64]
Measure = Callable[[Rows], float]
# Options with which a task gives what is measured.
OPTIONS: dict[str, Mapping[str, Any]] = {
    "text-classification": {"top_k": None},
    "token-classification": {"aggregation_strategy": "simple"},
    "question-answering": {},
    "multiple-choice": {},
    "rerank": {},
    "sentence-similarity": {},
    "embedding": {},
}
# Tasks whose measures scikit-learn computes.
SCIKIT = {"text-classification", "rerank", "sentence-similarity"}
LABELLED = {name for name in OPTIONS if name != "embedding"}


def metrics() -> Any:
    """scikit-learn's metrics. Raises UserError where it is not installed."""
    try:
        import sklearn.metrics
    except ImportError:
        raise UserError("evaluate needs scikit-learn: pip install 'xlmr-ray[train]'") from None
    return sklearn.metrics


def measures_of(
    task: str, config: XLMRobertaConfig, rows: pa.Table, table: pa.Table, pairs: pa.Table | None = None
) -> dict[str, Measure]:
    """The measures of a task's output `table` against the labels of its `rows`, by name, the most telling first; for
    embeddings, `pairs` is the output of the second texts. Raises UserError for labels that do not fit.
    """
    if task == "text-classification":
        return classification(config, rows, table)
    if task == "token-classification":
        found = [[(e["start"], e["end"], e["label"]) for e in own] for own in table["entities"].to_pylist()]
        counts = span_counts(found, entities(rows))
        return {
            "entity_f1": lambda chosen: f1(counts[chosen]),
            "precision": lambda chosen: share(counts[chosen, 0], counts[chosen, 1]),
            "recall": lambda chosen: share(counts[chosen, 0], counts[chosen, 2]),
        }
    if task == "question-answering":
        both = list(zip(table["answer"].to_pylist(), [texts for texts, _ in squad_answers(rows)], strict=True))
        return {
            "exact": mean_of(np.array([best_of(exact, found, wanted) for found, wanted in both])),
            "f1": mean_of(np.array([best_of(word_f1, found, wanted) for found, wanted in both])),
        }
    if task == "multiple-choice":
        counts = table["scores"].combine_chunks().value_lengths().to_pylist()
        return {"accuracy": mean_of(table["choice"].to_numpy() == right_choices(rows, counts))}
    if task == "rerank":
        return ranking(rows, table["score"].to_numpy())
    if task == "sentence-similarity":
        return correlation(table["score"].to_numpy(), label_numbers(rows))
    assert pairs is not None
    return retrieval(rows, unit_vectors(table), unit_vectors(pairs))


def classification(config: XLMRobertaConfig, rows: pa.Table, table: pa.Table) -> dict[str, Measure]:
    """Of one label, several, or a number, by the checkpoint's kind of problem."""
    labels = config.labels
    scores = scores_of(table, labels).astype(np.float64)
    if config.problem_type == "regression":
        return correlation(scores[:, 0], label_numbers(rows))
    if config.problem_type == "multi_label_classification" or len(labels) == 1:
        hot = hot_of(rows, labels).astype(np.int64)
        found = (scores > 0.5).astype(np.int64)
        score = partial(metrics().f1_score, zero_division=0.0)
        return {
            "micro_f1": lambda chosen: float(score(hot[chosen], found[chosen], average="micro")),
            "macro_f1": lambda chosen: float(score(hot[chosen], found[chosen], average="macro")),
            "auc": lambda chosen: mean_auc(hot[chosen], scores[chosen]),
            "calibration_error": lambda chosen: calibration_error(scores[chosen].ravel(), hot[chosen].ravel() > 0),
        }
    wanted = indices(rows, single_names(rows), labels)
    best = scores.argmax(1)
    return {
        "accuracy": mean_of(best == wanted),
        "macro_f1": lambda chosen: float(
            metrics().f1_score(wanted[chosen], best[chosen], average="macro", zero_division=0.0)
        ),
        "auc": lambda chosen: mean_auc(np.eye(len(labels), dtype=np.int64)[wanted[chosen]], scores[chosen]),
        "calibration_error": lambda chosen: calibration_error(scores[chosen].max(1), best[chosen] == wanted[chosen]),
    }


def scores_of(table: pa.Table, labels: Sequence[str]) -> NDArray[np.float32]:
    """The scores `(N, labels)` in an output of text classification that has all labels."""
    index_of = {name: index for index, name in enumerate(labels)}
    scores = np.empty((len(table), len(labels)), np.float32)
    for row, own in enumerate(table["labels"].to_pylist()):
        for one in own:
            scores[row, index_of[one["label"]]] = one["score"]
    return scores


def mean_auc(hot: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """The mean area under the curve of the labels `(N, labels)` that some rows have and others have not; NaN where
    there is none.
    """
    both = [index for index in range(hot.shape[1]) if 0 < hot[:, index].sum() < len(hot)]
    found = [metrics().roc_auc_score(hot[:, index], scores[:, index]) for index in both]
    return float(np.mean(found)) if found else float("nan")


def correlation(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> dict[str, Measure]:
    """Spearman's, and the root of the mean squared error."""
    from scipy.stats import spearmanr  # comes with scikit-learn

    def spearman(chosen: Rows) -> float:
        if len({*wanted[chosen].tolist()}) < 2 or len({*found[chosen].tolist()}) < 2:
            return float("nan")
        return float(spearmanr(found[chosen], wanted[chosen]).statistic)

    return {
        "spearman": spearman,
        "rmse": lambda chosen: float(np.sqrt(((found[chosen] - wanted[chosen]) ** 2).mean())),
    }


def ranking(rows: pa.Table, scores: NDArray[np.float32]) -> dict[str, Measure]:
    """Of pairs with a query each: how well pairs that answer are set apart; and of each query's documents, whether
    the best ones are among the first.
    """
    wanted = (relevance(rows) > 0.5).astype(np.int64)
    queries = rows["text"].combine_chunks().dictionary_encode().indices.to_numpy()
    return {
        "auc": lambda chosen: mean_auc(wanted[chosen, None], scores[chosen, None].astype(np.float64)),
        "accuracy": mean_of((scores > 0.5) == (wanted > 0)),
        "recall_at_1": mean_of(recalled(queries, scores, wanted, 1)),
        "recall_at_10": mean_of(recalled(queries, scores, wanted, 10)),
    }


def recalled(
    queries: NDArray[np.integer], scores: NDArray[np.floating], wanted: NDArray[np.int64], most: int
) -> NDArray[np.float64]:
    """Of each pair `(N)` the share of its query's relevant documents that are among its first so many; NaN where its
    query has none.
    """
    out = np.full(len(scores), np.nan)
    for query in np.unique(queries):
        own = np.flatnonzero(queries == query)
        total = wanted[own].sum()
        if total:
            first = own[np.argsort(-scores[own], kind="stable")[:most]]
            out[own] = wanted[first].sum() / total
    return out


def retrieval(rows: pa.Table, first: NDArray[np.float32], second: NDArray[np.float32]) -> dict[str, Measure]:
    """Whether a text's own partner is among the nearest by cosine, of the partners of all rows; equal texts are one."""
    same = rows["text_pair"].combine_chunks().dictionary_encode()
    code = same.indices.to_numpy()
    _, opens = np.unique(code, return_index=True)
    scores = first @ second[opens].T
    own = scores[np.arange(len(code)), code]
    rank = (scores > own[:, None]).sum(1)
    return {f"recall_at_{most}": mean_of(rank < most) for most in (1, 10)}


def unit_vectors(table: pa.Table) -> NDArray[np.float32]:
    """The vectors `(N, width)` of an output, brought to length 1."""
    column = table["embedding"].combine_chunks()
    column = getattr(column, "storage", column)
    found = column.flatten().to_numpy().reshape(len(table), -1).astype(np.float32)
    length: NDArray[np.float32] = np.linalg.norm(found, axis=1, keepdims=True)
    result: NDArray[np.float32] = found / np.maximum(length, 1e-12)
    return result


def mean_of(values: NDArray[Any]) -> Measure:
    """The mean of numbers `(N)` over the rows that count; those that are NaN are left out."""
    each = values.astype(np.float64)

    def mean(chosen: Rows) -> float:
        own = each[chosen]
        own = own[~np.isnan(own)]
        return float(own.mean()) if len(own) else float("nan")

    return mean


def share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
