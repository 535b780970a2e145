"""LoRA adapters of one base in a service: each a model by its name, with peft's answers, on one encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from tests.model.adapters import save_adapter
from xlmr_ray import XLMRobertaTokenizer, pipeline
from xlmr_ray.errors import UserError
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.validation import checked

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]


@pytest.fixture(scope="module")
def made(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of a service with two adapters, and what peft says for the one with a head."""
    folder = tmp_path_factory.mktemp("adapters")
    kind = {"task_type": "SEQ_CLS", "num_labels": 3}
    model = save_adapter("XLMRobertaForSequenceClassification", mini, folder / "legal", 1, **kind)
    inputs = XLMRobertaTokenizer.from_pretrained(mini)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits.softmax(-1).tolist()
    save_adapter("XLMRobertaModel", mini, folder / "near", 2, task_type="FEATURE_EXTRACTION")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLMR_RAY_CACHE", str(folder / "cache"))
        adapters = {"legal": str(folder / "legal"), "near": {"model": str(folder / "near")}}
        base = {"model": "embedded:mini", "tasks": ["embedding", "text-classification"], "adapters": adapters}
        merged = {"model": "embedded:mini", "adapters": {"alone": str(folder / "legal")}, "merge": True}
        engine = {"threads": 1, "tokenizers": 1, "dtype": "float32", "device": "cpu", "cache_bytes": 10_000_000}
        settings = ServeSettings.model_validate({"models": [base, merged], "engine": engine})
        service = Service.load(settings)
        with TestClient(build_app(service, settings)) as client:
            yield client, service, folder, wanted
        service.close()


def test_each_is_a_model(made: Any) -> None:
    client, service, folder, wanted = made
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["mini", "legal", "near", "alone"]
    assert service.models["near"].tasks == ("embedding", "text-classification")  # it brings no head
    assert len(service.resident.queues) == 2  # one encoder for the base and its adapters, one for what is merged
    for name in ("legal", "alone"):
        assert service.models[name].tasks == ("text-classification",)
        answer = client.post(f"/predict?model={name}", json={"inputs": [[text] for text in TEXTS]})
        assert answer.status_code == 200, answer.text
        for got, one in zip(answer.json(), wanted, strict=True):
            assert {label["label"]: label["score"] for label in got} == pytest.approx(
                {f"LABEL_{place}": score for place, score in enumerate(one)}, abs=1e-5
            )
    vectors = {}
    for name in ("mini", "near"):
        body = {"model": name, "input": TEXTS, "encoding_format": "float"}
        answer = client.post("/v1/embeddings", json=body).json()
        assert answer["model"] == name
        vectors[name] = [one["embedding"] for one in answer["data"]]
    adapters = {"near": folder / "near"}
    pipe = pipeline("embedding", "embedded:mini", adapters=adapters, normalize=True, device="cpu", dtype="float32")
    assert np.array_equal(np.array(vectors["near"], np.float32), np.array(pipe(TEXTS)))
    assert vectors["mini"] != vectors["near"]


def test_results_that_are_kept_are_each_models_own(made: Any) -> None:
    """Of one text and one encoder, by adapter: a request that comes again is answered with the results of its own."""
    client, service, _, _ = made
    encoder = service.find("embedding", "mini").queue
    assert service.find("embedding", "near").queue is encoder

    def answers() -> dict[str, bytes]:
        found = {
            name: client.post("/v1/embeddings", json={"model": name, "input": "Asked for twice."}).content
            for name in ("mini", "near")
        }
        predicted = {
            name: client.post(f"/predict?model={name}", json={"inputs": "Asked for twice."}).content
            for name in ("mini", "legal", "near", "alone")
        }
        return found | {f"predicted by {name}": one for name, one in predicted.items()}

    cold = answers()
    computed = encoder.engine.stats.sequences
    assert answers() == cold
    assert encoder.engine.stats.sequences == computed
    vectors = {name: one.partition(b'"embedding"')[2] for name, one in cold.items() if name in ("mini", "near")}
    assert vectors["mini"] != vectors["near"]
    assert len({one for name, one in cold.items() if name.startswith("predicted")}) == 4


def test_merge_is_for_one() -> None:
    section = {"model": "embedded:mini", "adapters": {"a": "x", "b": "y"}, "merge": True}
    with pytest.raises(UserError, match="merge: for a model with one adapter, got 2"):
        checked(ServeSettings, {"models": [section]}, "here")
    with pytest.raises(UserError, match="two are named 'mini'"):
        checked(ServeSettings, {"models": [{"model": "embedded:mini", "adapters": {"mini": "x"}}]}, "here")
