"""`python -m tests.serve.protocols.write_examples`: the examples of the OpenAPI document, as a service answers now."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.serve.server import every_task, running, save_causal
from xlmr_ray.serve.protocols import documented

FILE = Path(documented.__file__).with_name("examples.json")
CONTEXT = "Everyone has the right to education. Education shall be free."
REQUESTS: dict[str, dict[str, Any]] = {
    "POST /embed": {"texts": {"inputs": ["Everyone has the right to life.", "كل إنسان"], "dimensions": 4}},
    "POST /embed_all": {"a text": {"inputs": "a"}},
    "POST /predict": {
        "pairs": {"inputs": [["Everyone has the right to life.", "Nobody may be killed."]]},
    },
    "POST /rerank": {
        "text-embeddings-inference": {
            "query": "Who may go to school?",
            "texts": ["Everyone has the right to education.", "No one shall be held in slavery."],
            "return_text": True,
        },
        "Cohere and Jina": {
            "query": "Who may go to school?",
            "documents": ["Everyone has the right to education.", "No one shall be held in slavery."],
            "top_n": 1,
        },
    },
    "POST /similarity": {
        "sentences": {
            "inputs": {
                "source_sentence": "Everyone has the right to education.",
                "sentences": ["Education shall be free.", "No one shall be held in slavery."],
            }
        }
    },
    "POST /tokenize": {"a text": {"inputs": "All are equal."}},
    "POST /decode": {"ids": {"ids": [0, 2565, 4786, 2]}},
    "POST /": {"texts": {"inputs": ["Everyone has the right to life."], "dimensions": 4}},
    "POST /v1/embeddings": {
        "numbers": {"model": "mini", "input": ["Everyone has the right to life."], "dimensions": 4},
        "base64": {"model": "mini", "input": "Everyone", "dimensions": 4, "encoding_format": "base64"},
    },
    **{
        f"POST {path}": {
            "documents": {
                "model": "relevance",
                "query": "Who may go to school?",
                "documents": ["No one shall be held in slavery.", "Everyone has the right to education."],
            }
        }
        for path in ("/v1/rerank", "/v2/rerank")
    },
    "POST /embeddings": {"numbers": {"model": "mini", "input": ["Everyone has the right to life."], "dimensions": 4}},
    "POST /classify": {"texts": {"model": "script", "input": ["Everyone", "Каждый"]}},
    **{
        f"POST {path}": {
            "one with several": {
                "model": "relevance",
                "text_1": "Who may go to school?",
                "text_2": ["No one shall be held in slavery.", "Everyone has the right to education."],
            }
        }
        for path in ("/score", "/v1/score")
    },
    "POST /pooling": {"a vector": {"model": "mini", "input": "Everyone", "task": "embed", "dimensions": 4}},
    **{
        f"POST {path}": {
            "two encodings": {
                "model": "mini",
                "texts": ["Everyone has the right to life."],
                "input_type": "search_document",
                "embedding_types": ["float", "ubinary"],
                "output_dimension": 8,
            }
        }
        for path in ("/v1/embed", "/v2/embed")
    },
    "POST /tasks/text-classification": {
        "best two": {"inputs": "Everyone has the right to life.", "parameters": {"top_k": 2}}
    },
    "POST /tasks/token-classification": {
        "entities": {"inputs": "Свобода means freedom", "parameters": {"aggregation_strategy": "simple"}}
    },
    "POST /tasks/fill-mask": {"best two": {"inputs": "Everyone has the <mask> to life.", "parameters": {"top_k": 2}}},
    "POST /tasks/question-answering": {
        "one question": {"inputs": {"question": "What shall be free?", "context": CONTEXT}}
    },
    "POST /tasks/zero-shot-classification": {
        "labels": {"inputs": CONTEXT, "parameters": {"candidate_labels": ["school", "war"], "multi_label": True}}
    },
    "POST /tasks/multiple-choice": {
        "choices": {"inputs": {"text": "Everyone has the right to", "choices": ["education.", "slavery."]}}
    },
    "POST /tasks/text-generation": {
        "greedy": {"inputs": "Everyone has", "parameters": {"max_new_tokens": 4, "do_sample": False}}
    },
    "POST /tasks/perplexity": {"a text": {"inputs": "Everyone has the right to life."}},
    "POST /tasks/pseudo-perplexity": {"a text": {"inputs": "Everyone has the right to life."}},
    "POST /tasks/embedding": {"texts": {"inputs": ["Everyone has the right to life."], "dimensions": 4}},
    "POST /tasks/feature-extraction": {
        "a vector a text": {"inputs": "Everyone has the right to life.", "normalize": True, "dimensions": 4}
    },
    "POST /tasks/sentence-similarity": {
        "sentences": {
            "inputs": {"source_sentence": "Education is free.", "sentences": ["Education shall be free.", "Slavery."]}
        }
    },
    "POST /tasks/rerank": {
        "a query": {
            "inputs": {
                "query": "Who may go to school?",
                "documents": ["No one shall be held in slavery.", "Everyone has the right to education."],
            },
            "parameters": {"top_n": 1, "return_documents": True},
        },
        "a pair": {"inputs": {"text": "Who may go to school?", "text_pair": "Everyone has the right to education."}},
    },
}


def rounded(value: Any) -> Any:
    """Six digits, and no more labels than an example needs."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {key: rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def main() -> None:
    written: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, running(every_task(save_causal(Path(folder)))) as server:
        for route, named in REQUESTS.items():
            for name, request in named.items():
                response = httpx.post(server.url + route.partition(" ")[2], json=request)
                if response.status_code != 200:
                    sys.exit(f"{route}, {name}: {response.status_code} {response.text}")
                example = {"request": request, "response": rounded(response.json())}
                written.setdefault(route, {})[name] = example
    lines = [
        f"  {json.dumps(route)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in named.items())
        + "\n  }"
        for route, named in written.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
