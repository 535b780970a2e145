"""The launcher of the scheduled job against an API that answers as Kubernetes does."""

import importlib.util
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.infra.manifests import KUBERNETES, read

SCRIPT = KUBERNETES / "components" / "scheduled" / "launch.py"
spec = importlib.util.spec_from_file_location("launch", SCRIPT)
launch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)

PATH = "/apis/ray.io/v1/namespaces/team/rayjobs"
NOW = datetime(2026, 11, 22, 2, 0, 31, tzinfo=UTC)
MINUTES = int(datetime(2026, 11, 22, 2, 0, tzinfo=UTC).timestamp()) // 60
OWNER = {"apiVersion": "batch/v1", "kind": "Job", "name": f"xlmr-ray-{MINUTES}", "uid": "u-1"}
NAME = "xlmr-ray-20261122-0200"


class Cluster:
    """RayJobs by name, statuses to come for each look at one, and answers to give before any other."""

    def __init__(self) -> None:
        (template,) = read(KUBERNETES / "base" / "rayjob.yaml")
        template["spec"]["suspend"] = True
        template["metadata"]["labels"]["app.kubernetes.io/component"] = "template"
        self.rayjobs = {template["metadata"]["name"]: template}
        self.statuses: list[dict | None] = []
        self.troubles: list[int] = []
        self.tokens: list[str] = []


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def call(cluster, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def trouble(self) -> bool:
            cluster.tokens.append(self.headers["Authorization"])
            if not cluster.troubles:
                return False
            self.answer(cluster.troubles.pop(0), {"kind": "Status", "message": "as asked for"})
            return True

        def do_GET(self) -> None:
            if self.trouble():
                return
            name = self.path.removeprefix(f"{PATH}/")
            if name.startswith("xlmr-ray-2026") and cluster.statuses:
                status = cluster.statuses.pop(0)
                if status is None:
                    cluster.rayjobs.pop(name)
                else:
                    cluster.rayjobs[name]["status"] = status
            found = cluster.rayjobs.get(name)
            self.answer(200 if found else 404, found or {"kind": "Status", "message": "not found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.trouble():
                return
            name = body["metadata"]["name"]
            if self.path != PATH or name in cluster.rayjobs:
                self.answer(409, {"kind": "Status", "message": f"{name} already exists"})
                return
            cluster.rayjobs[name] = body
            self.answer(201, body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (tmp_path / "token").write_text("first\n")
    base = launch.api(f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield launch.persistent(base, seconds=0.001, patience=4)
    server.shutdown()
    server.server_close()


def launched(call, queue="", now=NOW, owner=OWNER):
    return launch.launch(call, "team", "xlmr-ray", owner, queue, now=now)


def test_makes_the_night_s_rayjob_from_the_template(call, cluster):
    assert launched(call) == NAME
    made, template = cluster.rayjobs[NAME], cluster.rayjobs["xlmr-ray"]
    assert made["spec"] == {**template["spec"], "suspend": False}
    assert made["metadata"]["ownerReferences"] == [OWNER]
    assert made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "xlmr-ray"}
    assert template["spec"]["suspend"] is True


def test_a_second_launch_finds_the_first_s(call, cluster, capsys):
    assert launched(call) == launched(call, owner={**OWNER, "uid": "u-2"}) == NAME
    assert cluster.rayjobs[NAME]["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert len(cluster.rayjobs) == 2
    assert "is there already" in capsys.readouterr().out


def test_with_a_queue_it_waits_for_kueue(call, cluster):
    launched(call, queue="nightly")
    made = cluster.rayjobs[NAME]
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nightly"


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (f"xlmr-ray-{MINUTES}", "20261122-0200"),
        (f"xlmr-ray-{MINUTES - 1440}", "20261121-0200"),  # started a day late
        ("by-hand", "20261122-0200"),
        ("by-hand-12345678", "20261122-0200"),  # digits, but no minute of this week
        ("by-hand-999999999", "20261122-0200"),
    ],
)
def test_the_name_is_the_schedule_s_minute(job, name):
    assert f"{launch.logical_time(job, NOW):%Y%m%d-%H%M}" == name


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 3),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 1"}, 3),
        ({"jobDeploymentStatus": "ValidationFailed"}, 3),
        (None, 3),
    ],
    ids=["succeeded", "stopped", "failed", "refused", "deleted"],
)
def test_waits_for_the_end(call, cluster, last, code, capsys):
    name = launched(call)
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    cluster.statuses = [{}, {"jobDeploymentStatus": "Retrying"}, running, running, last]
    assert launch.wait(call, "team", name, seconds=0.001) == code
    assert not cluster.statuses
    printed = capsys.readouterr().out
    assert printed.count("Running RUNNING") == 1
    assert ("deleted" in printed) == (last is None)


def test_goes_on_when_the_api_was_away(call, cluster, tmp_path):
    cluster.troubles = [503, 429, 500]
    name = launched(call)
    (tmp_path / "token").write_text("second\n")
    cluster.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert launch.wait(call, "team", name, seconds=0.001) == 0
    assert (cluster.tokens[0], cluster.tokens[-1]) == ("Bearer first", "Bearer second")


def test_a_lost_answer_to_the_making_is_no_second_rayjob(call, cluster):
    cluster.troubles = []
    real = call

    def lossy(method, path, body=None):
        answer = real(method, path, body)
        if method == "POST" and not lossy.lost:
            lossy.lost = True
            raise launch.ApiError(0, "connection reset")
        return answer

    lossy.lost = False
    assert launched(launch.persistent(lossy, seconds=0.001)) == NAME
    assert lossy.lost
    assert len(cluster.rayjobs) == 2


@pytest.mark.parametrize(("troubles", "code"), [([403], 403), ([503] * 4, 503)], ids=["forbidden", "away too long"])
def test_what_does_not_pass_is_said(call, cluster, troubles, code):
    cluster.troubles = list(troubles)
    with pytest.raises(launch.ApiError, match=f"GET {PATH}/xlmr-ray: {code} as asked for") as caught:
        launched(call)
    assert caught.value.code == code
    assert not cluster.troubles
