"""What a training's validation says beside measures: by language, which label is taken for which, how sure it is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xlmr_ray.train.measures.calibration_error import BINS, bin_of, calibration_error
from xlmr_ray.train.objectives.label_names import REGRESSION, SINGLE
from xlmr_ray.train.objectives.objective import Examples, Objective
from xlmr_ray.train.objectives.text_classification import TextClassificationObjective

MOST_LABELS = 50  # of a confusion matrix


def validated(
    objective: Objective, outputs: Sequence[NDArray[np.float32]], examples: Examples, languages: Sequence[str] | None
) -> dict[str, Any]:
    """Of the `outputs (R, ...)` of each example, as JSON: `rows`, `languages` (a measure is null where it is none), and
    of text classification `confusion` (rows of each label by the label that was found) and `calibration`. The
    `languages (E)` are None where the rows do not say them.
    """
    found: dict[str, Any] = {"rows": len(examples)}
    if languages is not None:
        found["languages"] = [
            language_measures(objective, outputs, examples, languages, name) for name in sorted(set(languages))
        ]
    if not isinstance(objective, TextClassificationObjective) or objective.problem == REGRESSION:
        return found
    logits, labels = torch.from_numpy(np.concatenate(outputs)).double(), examples.labels
    assert labels is not None
    if objective.problem == SINGLE:
        scores, best = (one.numpy() for one in logits.softmax(1).max(1))
        found["calibration"] = calibration_bins(scores, best == labels)
        if len(objective.config.labels) <= MOST_LABELS:
            counts = np.zeros((logits.shape[1], logits.shape[1]), np.int64)
            np.add.at(counts, (labels, best), 1)
            found["confusion"] = {"labels": list(objective.config.labels), "counts": counts.tolist()}
    else:
        found["calibration"] = calibration_bins(logits.sigmoid().numpy().ravel(), labels.ravel() > 0.5)
    return found


def language_measures(
    objective: Objective,
    outputs: Sequence[NDArray[np.float32]],
    examples: Examples,
    languages: Sequence[str],
    name: str,
) -> dict[str, Any]:
    """The measures of one language's rows."""
    chosen = np.flatnonzero(np.array(languages, dtype=object) == name)
    measures = objective.measures([outputs[example] for example in chosen.tolist()], examples.take(chosen))
    numbers = {key: value if np.isfinite(value) else None for key, value in measures.items()}
    return {"language": name, "rows": len(chosen), "measures": numbers}


def calibration_bins(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    """The expected calibration error, and its bins: how many scores, their mean, the share that is right."""
    places = bin_of(scores)
    bins = [
        {"scores": int(own.sum()), "mean": float(scores[own].mean()), "right": float(right[own].mean())}
        for own in (places == place for place in range(BINS))
        if own.any()
    ]
    return {"error": calibration_error(scores, right), "bins": bins}
