"""Dashboards and rules against the real tools: promtool, and a Prometheus that scrapes a real run and a real service.

Grafana itself is not at hand: every panel's query is run in Prometheus instead, and the files are read by Grafana's own
model of a dashboard.
"""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.infra.manifests import build
from xlmr_ray.batch.observe import metrics as batch
from xlmr_ray.serve import metrics as serve

FOLDER = Path(__file__).parents[2] / "infra" / "monitoring"
DASHBOARDS = sorted((FOLDER / "kubernetes" / "dashboards").glob("*.json"))
NAME = re.compile(r"xlmr_ray_(?:batch|serve)_\w+")
# Ray, a run, a service and Prometheus start within the first test that asks for them.
pytestmark = pytest.mark.timeout(600)
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed: apt-get install prometheus",
)


def rules():
    return yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]


def alerts():
    return [rule for group in rules() for rule in group["rules"]]


def panels(path):
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def queries(path):
    """The panels' queries with Grafana's variables filled in as it does for all."""
    for panel in panels(path):
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "1m").replace("$job_name", ".*").replace("$run", ".*")
            assert "$" not in text, text
            yield panel["title"], text


def known():
    """Every series that our metrics give, by name."""
    names = set()
    for metric in (*batch.TABLE, *serve.TABLE):
        histogram = metric.kind == "histogram"
        names |= {metric.name + ending for ending in ("_bucket", "_count", "_sum")} if histogram else {metric.name}
    return names


def test_rules_and_dashboards_name_what_is_counted():
    expressions = [rule["expr"] for rule in alerts()] + [text for path in DASHBOARDS for _, text in queries(path)]
    named = {name for text in expressions for name in NAME.findall(text)}
    assert named <= known()
    # And what is counted is looked at somewhere.
    shown = {re.sub(r"_bucket$", "", name) for name in named}
    assert {metric.name for metric in (*batch.TABLE, *serve.TABLE)} <= shown


def test_every_alert_says_what_to_do():
    book = (FOLDER / "runbook.md").read_text("utf-8")
    headings = re.findall(r"^## (\w+)$", book, re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_operators_rules_are_the_same():
    manifest = yaml.safe_load((FOLDER / "kubernetes" / "prometheusrule.yaml").read_text())
    assert manifest["spec"]["groups"] == rules()


def test_the_kubernetes_folder_builds_with_dashboards_inside():
    made = build(FOLDER / "kubernetes")
    kinds = sorted(one["kind"] for one in made)
    assert kinds == ["ConfigMap", "NetworkPolicy", "PodMonitor", "PrometheusRule"]
    [held] = [one for one in made if one["kind"] == "ConfigMap"]
    assert set(held["data"]) == {path.name for path in DASHBOARDS}
    [monitor] = [one for one in made if one["kind"] == "PodMonitor"]
    [relabel] = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    [same] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"][0]["metric_relabel_configs"]
    assert (relabel["regex"], relabel["replacement"]) == (same["regex"], same["replacement"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_loads(path):
    board = json.loads(path.read_text())
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", board["uid"])
    assert board["title"]
    assert board["schemaVersion"] >= 36
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[0] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(path):
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= set(names), used


def left_out(given, back, where=""):
    """What of the one JSON value is not in the other."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            yield from left_out(value, back[key], f"{where}.{key}") if key in back else [f"{where}.{key}"]
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for number, (value, other) in enumerate(zip(given, back, strict=True)):
            yield from left_out(value, other, f"{where}[{number}]")
    elif given != back:
        yield f"{where}: {given!r} became {back!r}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_model_knows_all_that_a_dashboard_says(path):
    """Panels, options and queries by their types; what the model does not know is lost when it writes it again."""
    register_default_plugins()
    given = json.loads(path.read_text())
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert list(left_out(given, back)) == []
    # And it would tell.
    given["panels"][1]["options"]["nonsense"] = 1
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert list(left_out(given, back)) == [".panels[1].options.nonsense"]


@needs_prometheus
def test_promtool_accepts_rules_and_configuration_and_the_alerts_fire_as_told():
    for arguments in (
        ["check", "rules", "rules.yml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        one["alertname"]
        for group in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
        for one in group["alert_rule_test"]
    }
    assert tested == {rule["alert"] for rule in alerts()}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def run_and_its_port(ray_session, tmp_path_factory):
    """A real run with an error row, and one that goes on, in which a request to the store was tried again; the port at
    which Ray exports them; when the latter last counted something.
    """
    import ray

    from xlmr_ray.batch.job import check_job
    from xlmr_ray.batch.ledger.record import Record, Stats
    from xlmr_ray.batch.observe.metrics import RunMetrics
    from xlmr_ray.batch.progress import Figures
    from xlmr_ray.batch.run import run_job
    from xlmr_ray.batch.stages.shard_cost import Committed, ShardCost
    from xlmr_ray.batch.store import retry_counter as retries

    folder = tmp_path_factory.mktemp("watched")
    (folder / "in.jsonl").write_text('{"text": "All human beings are born free"}\n{"text": ""}\n')
    content = {
        "name": "watched",
        "input": {"path": str(folder / "in.jsonl")},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(folder / "out")},
        "errors": {"max_fraction": 1},
    }
    outcome = run_job(check_job(content, "watched"), quiet=True)
    again = RunMetrics(job="retried", run_id="0" * 16, figures=Figures(1, 1))
    retries.count()
    stats = Stats(tokens=5, padded=1, operations=1e9, device="H100", engine_seconds=0.5)
    record = Record("0" * 16, "0", "0" * 16, (), 1, 1, 0, "in", "etag", 0.0, stats)
    again.shard(Committed(record, ShardCost(0.0, 0.1, encoder_wait=1.0, writer_wait=0.1, stats=stats)))
    yield outcome.manifest.run_id, ray.nodes()[0]["MetricsExportPort"], time.monotonic()
    again.close()


@pytest.fixture(scope="module")
def service_port():
    """The service itself, with one request answered and one refused."""
    import uvicorn

    from xlmr_ray.serve.app import build_app
    from xlmr_ray.serve.service import Service
    from xlmr_ray.serve.settings import ServeSettings

    settings = ServeSettings.model_validate(
        {"models": [{"model": "embedded:mini", "tasks": ["text-classification"]}], "engine": {"threads": 1}}
    )
    service = Service.load(settings)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(build_app(service, settings), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: ask(port, "/health") is not None, 60)
        ask(port, "/predict", {"inputs": "All human beings are born free"})
        ask(port, "/predict", {"inputs": 7})
        yield port
    finally:
        server.should_exit = True
        thread.join(30)
        service.close()


def ask(port, path, body=None):
    """The answer, an error's too; None where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(
            Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}), timeout=30
        ) as got:
            return got.read()
    except OSError as error:
        return error.read() if hasattr(error, "read") else None


def until(holds, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture(scope="module")
def prometheus(run_and_its_port, service_port, tmp_path_factory):
    """A Prometheus with the configuration as it stands, but for its targets and how often it asks."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "3s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules.yml")]
    [scrape] = config["scrape_configs"]
    del scrape["file_sd_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{run_and_its_port[1]}"]}]
    config["scrape_configs"].append(
        {"job_name": "service", "static_configs": [{"targets": [f"127.0.0.1:{service_port}"]}]}
    )
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    process = subprocess.Popen(
        [
            "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: b"Ready" in (ask(port, "/-/ready") or b""), 60)
        # Ray's workers tell their numbers every ten seconds; a rate wants two scrapes, each within its interval.
        until(lambda: len(series(port, "count_over_time(xlmr_ray_batch_store_retries_total[1m]) > 3")) > 0, 180)
        until(lambda: len(series(port, "count_over_time(xlmr_ray_serve_ready[1m]) > 3")) > 0, 30)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def series(port, query):
    answer = json.loads(ask(port, "/api/v1/query?" + urlencode({"query": query})))
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


@needs_prometheus
def test_every_metric_is_in_a_real_scrape(prometheus, run_and_its_port):
    names = {metric.name + ("_bucket" if metric.kind == "histogram" else "") for metric in batch.TABLE}
    missing = {name for name in names if not series(prometheus, name)}
    assert not missing
    names = {metric.name + ("_bucket" if metric.kind == "histogram" else "") for metric in serve.TABLE}
    missing = {name for name in names if not series(prometheus, name)}
    assert not missing
    run_id, *_ = run_and_its_port
    by = {
        one["metric"].get("outcome"): float(one["value"][1])
        for one in series(prometheus, f'xlmr_ray_batch_documents_total{{run="{run_id}",job_name="watched"}}')
    }
    assert by == {"ok": 1, "error": 1}
    [code] = series(prometheus, f'xlmr_ray_batch_errors_total{{run="{run_id}"}}')
    assert code["metric"]["code"] == "empty_text"


@needs_prometheus
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_asks_what_prometheus_answers(prometheus, path):
    empty = []
    for title, query in queries(path):
        found = series(prometheus, query)
        # A division by nothing is no number, and there is one run that goes nowhere: only what must be there is asked.
        if not found:
            empty.append(title)
    assert not set(empty) - {"Since the last commit", "Time left"}, empty


@needs_prometheus
def test_a_run_that_stands_still_is_seen(prometheus, run_and_its_port):
    """Ray forgets a gauge 20 seconds after the export that followed its last setting; a stalled run sets none."""
    since = time.monotonic() - run_and_its_port[2]
    time.sleep(max(0.0, 35 - since))
    for metric in batch.TABLE:
        if metric.kind == "gauge":
            assert series(prometheus, metric.name + '{job_name="retried"}'), metric.name
    [left] = series(prometheus, 'xlmr_ray_batch_shards{job_name="retried",state="left"}')
    assert float(left["value"][1]) == 1


@needs_prometheus
def test_the_rules_are_loaded_and_evaluated(prometheus):
    def groups():
        return json.loads(ask(prometheus, "/api/v1/rules"))["data"]["groups"]

    until(lambda: all(rule["health"] == "ok" for group in groups() for rule in group["rules"]), 30)
    assert [rule["name"] for group in groups() for rule in group["rules"]] == [rule["alert"] for rule in alerts()]
