"""A service behind a real HTTP server in a thread: every task of the embedded checkpoint and its heads, or others."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from xlmr_ray import XLMRobertaForCausalLM, XLMRobertaTokenizer
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

HEADS = "embedded:mini/heads/"
MODELS: list[dict[str, Any]] = [
    {
        "model": "embedded:mini",
        "tasks": ["embedding", "sentence-similarity", "feature-extraction", "text-classification"],
    },
    {"model": f"{HEADS}entities"},
    {"model": f"{HEADS}masked", "tasks": ["fill-mask", "pseudo-perplexity"]},
    {"model": f"{HEADS}answers"},
    {"model": f"{HEADS}entailment", "tasks": ["zero-shot-classification", "text-classification"]},
    {"model": f"{HEADS}relevance"},
    {"model": f"{HEADS}choice"},
    {"model": f"{HEADS}script"},
]
# Short where a request does not say how long, for tests that send many.
GENERATION = {"task": "text-generation", "max_new_tokens": 4}


@dataclass(frozen=True)
class Running:
    url: str
    service: Service
    app: FastAPI

    def source(self, model: str) -> str:
        """What `pipeline()` takes for a model of the service."""
        return self.service.models[model].source


def save_causal(folder: Path) -> Path:
    """The embedded language model as a causal one. It was not trained as such, which makes no difference here."""
    XLMRobertaForCausalLM.from_pretrained(f"{HEADS}masked", is_decoder=True).save_pretrained(folder)
    XLMRobertaTokenizer.from_pretrained("embedded:mini").save_pretrained(folder)
    return folder


def every_task(causal: Path) -> list[dict[str, Any]]:
    """The models of all, with this one for causal tasks."""
    return [*MODELS, {"model": str(causal), "name": "causal", "tasks": [GENERATION, "perplexity"]}]


@contextmanager
def running(models: Sequence[Mapping[str, Any]]) -> Iterator[Running]:
    settings = ServeSettings.model_validate(
        {"models": models, "engine": {"threads": 1, "tokenizers": 1}, "limits": {"new_tokens": 64}}
    )
    service = Service.load(settings)
    app = build_app(service, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_keep_alive=90))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended while starting"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", service, app)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        service.close()
