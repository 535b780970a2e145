"""Files at web addresses, and data sets of the hub, both on a server of this machine."""

import hashlib
import http.server
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.lake.reading import counted, read
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.errors import UserError

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Handler(http.server.BaseHTTPRequestHandler):
    """`server.files`: by path the content and the headers, `server.ranges`: whether parts are sent."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/"):
            self.answer(*hub(self.server, path))
            return
        data, headers = self.server.files.get(path, (None, {}))
        if data is None:
            self.answer(b"", 404)
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        if asked is None:
            self.answer(data, 200, headers)
            return
        start, _, stop = asked.removeprefix("bytes=").partition("-")
        part = data[int(start) : int(stop) + 1]
        self.answer(part, 206, {**headers, "Content-Range": f"bytes {start}-{stop}/{len(data)}"})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"[]")

    def answer(self, data, status=200, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not self.server.endless:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def hub(server, path):
    """What the hub's API says of the repository `org/name`: its commit at a revision, and the tree of one."""
    prefix = "/api/datasets/org/name"
    if not path.startswith(prefix):
        return b"{}", 404, {"X-Error-Code": "RepoNotFound"}
    kind, _, rest = path.removeprefix(prefix).strip("/").partition("/")
    revision = rest.partition("/")[0] or "main"
    commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
    if commit is None:
        return b"{}", 404, {"X-Error-Code": "RevisionNotFound"}
    if kind != "tree":
        return json.dumps({"id": "org/name", "sha": commit, "siblings": []}).encode(), 200
    root = f"/datasets/org/name/resolve/{commit}/"
    tree = [
        {"type": "file", "path": one.removeprefix(root), "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for one, (data, _) in server.files.items()
        if one.startswith(root)
    ]
    return json.dumps(tree).encode(), 200


@pytest.fixture
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files, found.ranges, found.endless = {}, True, False
    found.url = f"http://127.0.0.1:{found.server_port}"
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def parquet(texts):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


def rows(texts):
    return counted([{"text": text} for text in texts])


@pytest.mark.parametrize("state", ["ETag", "Last-Modified"])
def test_a_file_at_a_web_address(server, state):
    server.files["/a.parquet"] = parquet(["a", "b", "c"]), {state: "Sun, 29 Nov 2026 12:54:00 GMT"}
    server.files["/b.jsonl"] = b'{"text": "d"}\n' * 3, {state: '"1"'}
    paths = [f"{server.url}/a.parquet", f"{server.url}/b.jsonl"]
    assert read(paths[0], ["text"]) == rows("abc")
    found = find_inputs(paths).inputs
    assert [one.size for one in found] == [len(server.files[f"/{name}"][0]) for name in ("a.parquet", "b.jsonl")]
    server.files["/b.jsonl"] = b'{"text": "e"}\n' * 3, {state: '"2"'}
    with pytest.raises(InputChanged, match="changed since the job was planned"):
        Source(found[1]).check()


def test_a_server_that_does_not_say_enough_is_refused(server):
    server.files["/a.jsonl"] = b'{"text": "d"}\n' * 3, {}
    with pytest.raises(UserError, match="tells neither an ETag nor a time"):
        find_inputs(f"{server.url}/a.jsonl")
    server.files["/a.jsonl"] = b'{"text": "d"}\n' * 3, {"ETag": '"1"'}
    (found,) = find_inputs(f"{server.url}/a.jsonl").inputs
    server.ranges = False
    assert Source(found).range(0, found.size) == server.files["/a.jsonl"][0]
    with pytest.raises(UserError, match="its server sends no parts of it"):
        Source(found).range(0, 5)
    server.endless = True
    with pytest.raises(UserError, match="does not say its length"):
        find_inputs(f"{server.url}/a.jsonl")
    with pytest.raises(UserError, match="no such file or folder"):
        find_inputs(f"{server.url}/none.jsonl")


def test_a_data_set_of_the_hub_is_read_at_a_commit(server):
    options = {"endpoint": server.url, "token": False}
    for commit, texts in zip(COMMITS.values(), (["new"], ["old", "older"]), strict=True):
        server.files[f"/datasets/org/name/resolve/{commit}/data.parquet"] = parquet(texts), {}
        server.files[f"/datasets/org/name/resolve/{commit}/README.md"] = b"# name", {}
    for path, commit in (
        ("hf://datasets/org/name", "a"),
        ("hf://datasets/org/name@v1/data.parquet", "b"),
        ("hf://datasets/org/name@v1/*.parquet", "b"),
        (f"hf://datasets/org/name@{'b' * 40}", "b"),
    ):
        (one,) = find_inputs(path, options=options).inputs
        assert one.key == f"hf://datasets/org/name@{commit * 40}/data.parquet"
        assert one.table == f"hf://datasets/org/name@{commit * 40}"
        data = server.files[f"/datasets/org/name/resolve/{commit * 40}/data.parquet"][0]
        assert (one.etag, one.size) == (hashlib.sha1(data).hexdigest(), len(data))
        source = Source(one, options)
        source.check()
        assert pq.read_table(pa.BufferReader(source.range(0, one.size))) == pq.read_table(pa.BufferReader(data))
    with pytest.raises(UserError, match="hf://datasets/org/name@none: "):
        find_inputs("hf://datasets/org/name@none", options=options)
    with pytest.raises(UserError, match="hf://datasets/org/gone: "):
        find_inputs("hf://datasets/org/gone", options=options)
