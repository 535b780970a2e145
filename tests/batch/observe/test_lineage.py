"""OpenLineage events: what they say, where they go, and that they end no job."""

import json
import threading
import uuid
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from tests.batch.observe.report.reports import RUN, plain_run
from xlmr_ray import JobFailed, UserError
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.manifest import read_manifest
from xlmr_ray.batch.observe.lineage import dataset
from xlmr_ray.batch.observe.telemetry import watched
from xlmr_ray.errors import Interrupted


def job(out, **lineage):
    content = {
        "name": "labels",
        "input": {"path": "s3://bucket/corpus/"},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(out)},
        "lineage": lineage,
    }
    return check_job(content, "job")


def told(store, checked, *, raises=None, console=None):
    """A launch that is watched, and finishes or raises."""
    console = console or Console(quiet=True)
    with watched(checked, store, RUN, console, rows=256, files=6, models={"embedded:mini": "ab" * 32}) as watch:
        if raises:
            raise raises
        watch.finished(read_manifest(store, RUN), anew=False)


def events(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def check(event):
    """What OpenLineage's schema requires of a run event."""
    assert event["eventType"] in ("START", "COMPLETE", "FAIL", "ABORT")
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None
    uuid.UUID(event["run"]["runId"])
    assert event["producer"] == "https://pypi.org/project/xlmr-ray"
    assert event["schemaURL"].startswith("https://openlineage.io/spec/")
    assert event["job"]["namespace"]
    assert event["job"]["name"] == "labels"
    facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
    for one in (*event["inputs"], *event["outputs"]):
        assert one["namespace"]
        assert one["name"]
        for kind in ("facets", "inputFacets", "outputFacets"):
            facets += one.get(kind, {}).values()
    for facet in facets:
        assert facet["_producer"]
        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")


def test_a_launch_that_ends_well(local, tmp_path):
    plain_run(local)
    path = tmp_path / "events.jsonl"
    told(local, job(tmp_path / "out", file=str(path), namespace="prod"))
    start, complete = events(path)
    for event in (start, complete):
        check(event)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"]["namespace"] == "prod"
    [source] = start["inputs"]
    assert (source["namespace"], source["name"]) == ("s3://bucket", "corpus")
    assert source["inputFacets"]["inputStatistics"]["rowCount"] == 256
    rows, errors = complete["outputs"]
    assert (rows["namespace"], rows["name"]) == ("file", str(tmp_path / "out" / "data"))
    assert rows["outputFacets"]["outputStatistics"]["rowCount"] == 240
    assert errors["outputFacets"]["outputStatistics"]["rowCount"] == 16
    assert rows["facets"]["version"]["datasetVersion"] == RUN
    assert {"name": "label", "type": "string", "fields": []} in rows["facets"]["schema"]["fields"]
    tags = {tag["key"]: tag["value"] for tag in complete["run"]["facets"]["tags"]["tags"]}
    assert tags["run_id"] == RUN
    assert tags["weights of embedded:mini"] == "ab" * 32
    assert tags["code"].startswith("0.1.0")


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (JobFailed("s3://me:pass1@b/k: cannot be read"), "FAIL", "cannot be read"),
        (Interrupted("stopped: 1 of 2"), "ABORT", "stopped: 1 of 2"),
        (ValueError("a document's text"), "FAIL", "ValueError"),
    ],
)
def test_a_launch_that_does_not(local, tmp_path, error, state, said):
    plain_run(local)
    path = tmp_path / "events.jsonl"
    with pytest.raises(type(error)):
        told(local, job(tmp_path / "out", file=str(path)), raises=error)
    event = events(path)[-1]
    check(event)
    assert event["eventType"] == state
    message = event["run"]["facets"]["errorMessage"]["message"]
    assert said in message
    assert "pass1" not in message
    assert "document's text" not in path.read_text()


def test_to_a_catalogue_by_http_with_its_key(local, tmp_path, monkeypatch):
    got = []

    class Catalogue(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Catalogue)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "secret-key")
    plain_run(local)
    try:
        told(local, job(tmp_path / "out", url=f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()
    assert [(path, key, event["eventType"]) for path, key, event in got] == [
        ("/api/v1/lineage", "Bearer secret-key", "START"),
        ("/api/v1/lineage", "Bearer secret-key", "COMPLETE"),
    ]


def test_a_catalogue_that_is_not_there_is_said_and_ends_nothing(local, tmp_path):
    plain_run(local)
    console = Console(record=True, quiet=False, file=(tmp_path / "said").open("w"))
    told(local, job(tmp_path / "out", url="http://127.0.0.1:9"), console=console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("no lineage event: ")]
    assert len(lines) == 2
    assert "Traceback" not in console.export_text()


def test_a_job_file_names_one_place(tmp_path):
    with pytest.raises(UserError, match="has a url and a file; give one of them"):
        job(tmp_path, url="http://a", file="b")


def test_the_client_is_asked_for_only_where_lineage_is(local, tmp_path, monkeypatch):
    import sys

    plain_run(local)
    monkeypatch.setitem(sys.modules, "openlineage.client.uuid", None)
    with pytest.raises(UserError, match=r"openlineage-python is not installed; pip install 'xlmr-ray\[lineage\]'"):
        told(local, job(tmp_path, file="x"))
    plain = job(tmp_path).model_copy(update={"lineage": None})
    told(local, plain)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("s3://bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("/data/x", ("file", "/data/x")),
        ("file:///data/x", ("file", "/data/x")),
        ("https://me:pass@host/x?sig=1", ("https://host", "x")),
    ],
)
def test_datasets_are_named_by_openlineages_rules(path, wanted):
    assert dataset(path) == wanted
