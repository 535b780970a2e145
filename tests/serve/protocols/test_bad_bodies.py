"""Bodies that are wrong in the ways of people and programs: each is refused, and the message names the field."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.serve.protocols.write_examples import REQUESTS

# One right body a route.
RIGHT = {route.partition(" ")[2]: next(iter(named.values())) for route, named in REQUESTS.items()}
SECRET = "a text that is nobody else's business"
# In place of whatever a field takes.
WRONG: dict[str, str] = {
    "a number": "12345.5",
    "a huge whole number": "1" + "0" * 5000,
    "a number beyond a double": "1e400",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "true": "true",
    "an object": f'{{"surprise": "{SECRET}"}}',
    "an object in a list": f'[{{"surprise": "{SECRET}"}}]',
    "lists": "[[[[1]]]]",
    "mixed": f'["{SECRET}", 1, null]',
    "a lone surrogate": '"\\ud800"',
    "a lone surrogate in a list": '["a", "\\udc00\\ud800"]',
    "an unknown word": f'"\\u0000 {SECRET}"',
    "depth": "[" * 10_000 + "]" * 10_000,
    "nothing": "",
    "half an object": '{"a": ',
}


def fields_of(body: Any, way: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The ways to the body's fields, those of objects in it, too."""
    found = []
    for name, value in body.items():
        found.append((*way, name))
        if isinstance(value, dict):
            found += fields_of(value, (*way, name))
    return found


def replaced(body: Any, way: tuple[str, ...], text: str) -> str:
    """The body's JSON with some text in place of a field's value."""
    mark = "@@here@@"
    copy = json.loads(json.dumps(body))
    inner = copy
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = mark
    return json.dumps(copy).replace(json.dumps(mark), text)


PLACES = [(path, way) for path, body in RIGHT.items() for way in fields_of(body)]


@pytest.mark.parametrize(("path", "way"), PLACES, ids=[f"{path}:{'.'.join(way)}" for path, way in PLACES])
def test_wrong_values(http: httpx.Client, path: str, way: tuple[str, ...]) -> None:
    for kind, text in WRONG.items():
        response = post(http, path, replaced(RIGHT[path], way, text))
        if response.status_code == 200:  # a few of them are right for some fields
            assert kind in ("true", "an unknown word"), (kind, response.text)
            continue
        assert response.status_code in (400, 404, 422), (kind, response.text)
        line = error_line(response)
        assert SECRET not in line or way == ("model",)  # whose name is said as it was asked for
        assert len(line) < 400
        if kind not in ("nothing", "half an object", "depth"):
            assert way[-1] in line or (len(way) > 1 and way[0] in line), (kind, line)


@pytest.mark.parametrize("path", RIGHT)
def test_unknown_missing_and_repeated_fields(http: httpx.Client, path: str) -> None:
    body = RIGHT[path]
    for way in fields_of(body):
        misspelt = json.loads(json.dumps(body))
        inner = misspelt
        for name in way[:-1]:
            inner = inner[name]
        inner[way[-1] + "s_"] = inner.pop(way[-1])
        line = error_line(refused(http, path, json.dumps(misspelt), 422))
        assert way[-1] in line, line
    line = error_line(refused(http, path, json.dumps({**body, "surprise": 1}), 422))
    assert re.match(r"surprise: no such field", line)
    first = next(iter(body))
    line = error_line(refused(http, path, json.dumps(body)[:-1] + f", {json.dumps(first)}: 1}}", 422))
    assert line == f"{first}: is there twice"


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize(
    "text", ["null", "[]", "[1, 2]", '"text"', "1", "true", "[{}]", "{}", "", "{", "nul", "\ufeff"]
)
def test_no_body(http: httpx.Client, path: str, text: str) -> None:
    assert error_line(refused(http, path, text, 422))


@pytest.mark.parametrize("path", RIGHT)
def test_no_text_at_all(http: httpx.Client, path: str) -> None:
    for body in (b"\xff\xfe", b'{"inputs": "\xc3\x28"}', b"\x00" * 100, json.dumps(RIGHT[path]).encode("utf-16")):
        assert error_line(refused(http, path, body, 422))
    response = http.post(path, content=b"inputs=a", headers={"content-type": "application/x-www-form-urlencoded"})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("path", "field", "most"),
    [
        ("/embed", "inputs", 32),
        ("/predict", "inputs", 32),
        ("/rerank", "texts", 32),
        ("/tokenize", "inputs", 32),
        ("/decode", "ids", 32),
        ("/v1/embeddings", "input", 2048),
        ("/v1/rerank", "documents", 1000),
        ("/v2/rerank", "documents", 1000),
        ("/similarity", "inputs.sentences", 32),
        ("/tasks/fill-mask", "inputs", 32),
        ("/tasks/embedding", "inputs", 32),
        ("/tasks/rerank", "inputs.documents", 32),
    ],
)
def test_too_many_and_none(http: httpx.Client, path: str, field: str, most: int) -> None:
    for count, status in ((0, 400), (most + 1, 413), (30_000, 413), (most, 200)):
        text: Any = [300] if path == "/decode" else "a <mask>"
        text = [text] if path == "/predict" else text
        body = replaced(RIGHT[path], tuple(field.split(".")), json.dumps([text] * count))
        response = refused(http, path, body, status)
        if status != 200:
            assert field.split(".")[-1] in error_line(response), error_line(response)


def test_more_tokens_than_a_request_may_have(http: httpx.Client) -> None:
    long = "1 " * 450
    for path, body in (
        ("/v1/embeddings", {"input": [long] * 2000, "truncate": True}),
        ("/v2/rerank", {"query": "a", "documents": [long] * 800}),
        ("/tokenize", {"inputs": ["many words " * 40_000]}),
        ("/decode", {"ids": [[5] * 300_001]}),
        ("/embed", {"inputs": [5] * 300_001}),
    ):
        line = error_line(refused(http, path, json.dumps(body, separators=(",", ":")), 413))
        assert "at most" in line, line


def test_more_parts_than_any_request_has(http: httpx.Client) -> None:
    """Half a million of them took seconds in the event loop before they were counted."""
    for path, body, status in (
        ("/embed", {"inputs": [[1]] * 5000}, 413),
        ("/embed", {"inputs": ["a", *[[1]] * 5000]}, 413),
        ("/predict", {"inputs": [["a"]] * 5000}, 413),
        ("/v2/rerank", {"query": "a", "documents": [{"text": "a"}] * 5000}, 413),
        ("/v2/rerank", {"query": "a", "documents": [{"text": "a"} | {f"k{i}": 1 for i in range(300)}]}, 422),
        ("/embed", {"inputs": "a"} | {f"k{i}": 1 for i in range(300)}, 422),
        ("/tasks/text-classification", {"inputs": "a", "parameters": {f"k{i}": 1 for i in range(300)}}, 422),
    ):
        line = error_line(refused(http, path, json.dumps(body), status))
        assert "at most" in line, line


def test_empty_texts(http: httpx.Client) -> None:
    for path, body, field in (
        ("/embed", {"inputs": ["a", ""]}, "inputs.1"),
        ("/embed", {"inputs": ""}, "inputs"),
        ("/rerank", {"query": "", "texts": ["a"]}, "query"),
        ("/rerank", {"query": "a", "texts": ["a", ""]}, "texts.1"),
        ("/tasks/multiple-choice", {"inputs": {"text": "a", "choices": ["", ""]}}, None),
    ):
        response = post(http, path, json.dumps(body))
        if field is None:  # an empty choice is a choice
            assert response.status_code == 200
        else:
            assert response.status_code == 400
            assert error_line(response).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("task", "inputs", "parameters"),
    [
        ("zero-shot-classification", "a", {"candidate_labels": [SECRET, " "]}),
        ("zero-shot-classification", "a", {"candidate_labels": [SECRET * 90]}),
        ("zero-shot-classification", "a", {"candidate_labels": ["a"], "hypothesis_template": SECRET}),
        ("zero-shot-classification", "a", {"candidate_labels": ["a"], "hypothesis_template": f"{SECRET} {{:>9}}"}),
        ("zero-shot-classification", "a", {"candidate_labels": ["a"], "hypothesis_template": SECRET * 90 + "{}"}),
        ("fill-mask", "a <mask>", {"targets": ["", " "]}),
        ("fill-mask", f"{SECRET} without a mask", {}),
        ("token-classification", "a", {"ignore_labels": [SECRET], "long": "cut", "stride": 3}),
        ("embedding", "a", {"prompt_name": SECRET}),
    ],
)
def test_options_are_not_quoted(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, task: str, inputs: str, parameters: dict[str, Any]
) -> None:
    body = {"inputs": inputs, **(parameters if task == "embedding" else {"parameters": parameters})}
    line = error_line(refused(http, f"/tasks/{task}", json.dumps(body), 422))
    assert "secret" not in line.lower()
    assert "nobody else" not in line + caplog.text


def test_too_long_a_body(http: httpx.Client) -> None:
    response = refused(http, "/embed", json.dumps({"inputs": "a" * 2_100_000}), 413)
    assert "2000000 bytes" in error_line(response)


def post(http: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    return http.post(path, content=content, headers={"content-type": "application/json"})


def refused(http: httpx.Client, path: str, body: str | bytes, status: int) -> httpx.Response:
    response = post(http, path, body)
    assert response.status_code == status, response.text
    return response


def error_line(response: httpx.Response) -> str:
    """The line of an error, in the shape of its path's protocol."""
    path, body = response.request.url.path, response.json()
    if path in ("/v1/embeddings", "/embeddings", "/classify", "/score", "/v1/score", "/pooling"):
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    if path in ("/v1/rerank", "/v2/rerank", "/v1/embed", "/v2/embed"):
        assert body.keys() == {"message"}
        return str(body["message"])
    if path == "/v1/multi-vector":
        assert body.keys() == {"detail"}
        return str(body["detail"])
    assert body.keys() == {"error", "error_type"}
    return str(body["error"])
