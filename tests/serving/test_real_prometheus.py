"""Gateway, Prometheus and Alertmanager as they run: queries find data, alerts become alarms.

One of each for all tests. Only how often they look is changed: every second.
"""

import contextlib
import shutil
import subprocess
import threading
import time

import httpx
import pytest
import yaml
from doubles import Pointer, free_port, model, served, wait_until

from penstock.errors import LedgerError
from penstock.exported import write_files
from penstock.gates.agreement import calibrate
from penstock.gates.quality import GoodShare
from penstock.gates.stream_alarm import Moment
from penstock.ledger import Ledger, ModelVersion
from penstock.ledger.accounts import Accounts
from penstock.ledger.alarms import Alarm, Alarms, AlarmState
from penstock.ledger.api_keys import ApiKey, ApiKeys
from penstock.ledger.drift_records import DriftRecord
from penstock.ledger.judge_budget import Spent
from penstock.monitoring import project_metrics
from penstock.monitoring.dashboards import boards
from penstock.monitoring.drift import Judged, Status
from penstock.monitoring.drift_metrics import DriftMetrics
from penstock.monitoring.judge_metrics import JudgeMetrics
from penstock.monitoring.judge_report import Status as JudgeStatus
from penstock.monitoring.judge_standing import Raters
from penstock.monitoring.metrics import IngestMetrics, MetricsServer, ServingMetrics
from penstock.monitoring.project_metrics import ProjectMetrics
from penstock.monitoring.prometheus_files import Addresses, prometheus_files
from penstock.recipe import Recipe
from penstock.serve_section import RouteConfig, Serve
from penstock.serving.alerts import AlertDesk
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

SECRET = "a secret for the whole world"
PROGRAMS = ("prometheus", "prometheus-alertmanager")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)), reason=f"needs {' and '.join(PROGRAMS)}"
    ),
]


class World:
    """Everything that runs, and what was sent to it."""

    def __init__(self, folder, ledger, server, ingest, key, ports):
        self.folder, self.ledger, self.server, self.ingest = folder, ledger, server, ingest
        self.prometheus, self.alertmanager = (f"http://127.0.0.1:{port}" for port in ports)
        self.breaks = threading.Event()
        self._done = threading.Event()
        self._client = httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=30
        )
        self._asking = httpx.Client(base_url=self.prometheus, timeout=30)
        self._thread = threading.Thread(target=self._send)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._client.close()
        self._asking.close()

    def _send(self):
        while not self._done.is_set():
            order = "break" if self.breaks.is_set() else "count 3"
            for name in ("penny", "either"):
                body = {"model": name, "prompt": order, "max_tokens": 5}
                self._client.post("/v1/completions", json=body)
            self._client.post("/v1/embeddings", json={"model": "vectors", "input": "text"})
            self._done.wait(0.1)

    def ask(self, expr):
        """What a query finds now."""
        answer = self._asking.get("/api/v1/query", params={"query": expr})
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return []  # it reads its log of writes first
        assert answer.status_code == 200, (expr, answer.text)
        return answer.json()["data"]["result"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, fake_folders):
    folder = tmp_path_factory.mktemp("world")
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    key = filled(ledger)
    prometheus_port, alertmanager_port = free_port(), free_port()
    config = serve_config(fake_folders)
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "sources": {"files": {"type": "files", "paths": "a"}},
            "evaluate": {"tasks": ["t"]},
            "gate": {"min": {"t": 0.5}},
            "observe": {"slo": {"min_requests": 1, "down_s": 0}},
        }
    )
    metrics = ServingMetrics()
    metrics.registry.register(ProjectMetrics("demo", "penny", ledger))
    told_by_others(metrics)
    around = Surroundings(
        Pointer(served(fake_folders[1], 1)),
        folder / "cache",
        metrics=metrics,
        keys=ApiKeys(ledger.database),
        accounts=Accounts(ledger.database),
        alerts=AlertDesk(SECRET, "demo", ledger),
    )
    with contextlib.ExitStack() as stack:
        hurry = stack.enter_context(pytest.MonkeyPatch.context())
        hurry.setattr(project_metrics, "_KEPT_S", 0.5)
        server = stack.enter_context(BackgroundServer(config, around))
        server.wait_ready(30)
        ingest = MetricsServer(ingested(), "127.0.0.1", 0)
        drift = stack.enter_context(contextlib.closing(MetricsServer(drifting(), "127.0.0.1", 0)))
        judge = stack.enter_context(contextlib.closing(MetricsServer(judging(), "127.0.0.1", 0)))
        shown = (server.metrics_url, ingest.url, drift.url, judge.url)
        at = Addresses.of(
            recipe,
            tuple(url.split("/")[2] for url in shown),
            server.url,
            alertmanager=f"127.0.0.1:{alertmanager_port}",
        )
        write_files(folder, hurried(prometheus_files(recipe, at)))
        (folder / at.secret_file).write_text(SECRET)
        stack.enter_context(running(folder, alertmanager_command(folder, alertmanager_port)))
        stack.enter_context(running(folder, prometheus_command(folder, prometheus_port)))
        world = World(folder, ledger, server, ingest, key, (prometheus_port, alertmanager_port))
        stack.callback(lambda: world.ingest.close())
        yield stack.enter_context(world)


def serve_config(folders):
    vectors = model(task="embed", source=str(folders[3]))
    price = {"prompt_per_million": 100, "completion_per_million": 1000}
    return Serve(
        port=0,
        metrics_port=0,
        poll_interval_s=0.05,
        models={
            "penny": model(price=price, retries=1),
            "shadow": model(source=str(folders[2])),
            "vectors": vectors,
        },
        routes={"either": RouteConfig(to="penny", shadow={"to": "shadow"})},
    )


def filled(ledger):
    """A project that has trained, tried, been warned, and has a customer; their key."""
    ledger.add_model(ModelVersion("penny", 1, "f", "d", "p", "run", "data"))
    Alarms(ledger).raise_(Alarm("demo", "drift", "window 7", time.time()))
    budget = ApiKey("", "app", "acme", budget_tokens=10**9)
    return ApiKeys(ledger.database).create(budget)[1]


def told_by_others(metrics):
    """What trials, features and the request log say, as they say it."""
    metrics.show_rollout("penny", 0.25, "rollout-1", 1)
    metrics.rollout_decisions.labels("penny", "step").inc()
    metrics.feature_lookups.labels("found").inc(3)
    metrics.logged_requests.labels("written").inc(3)
    metrics.feedback.labels("penny", "thumb", "up").inc()
    metrics.load_failures.labels("penny").inc(0)
    metrics.retried.labels("penny", "retry").inc()
    metrics.alerts.labels("resolved").inc(0)


def ingested():
    metrics = IngestMetrics()
    metrics.rows.labels("tickets").set(100)
    metrics.lag.labels("tickets", "topic-0").set(5)
    metrics.failures.labels("tickets").inc()
    return metrics


def drifting():
    """What `penstock drift` shows of one window."""
    compared = {"training": {"kernel_p": 0.2, "classifier_p": 0.4}, "since_promotion": None}
    found = {"columns": {"input": compared}, "signals": {}}
    record = DriftRecord("demo", "stream", 0, 3_600_000, 1, found)
    moment = Moment(2.0, {"input length": 3.0}, {"input length": 0.1}, 1, False)
    metrics = DriftMetrics()
    status = Status("demo", 1, 0.0, 7300.0, (), (Judged(record, moment),))
    metrics.show(status, time.time())
    return metrics


def judging():
    """What `penstock judge run` shows of one version."""
    agree = calibrate([[18, 2], [1, 29]], min_labels=20, min_kappa=0.4)
    good = GoodShare.of([True] * 40 + [False] * 10)
    raters = Raters(0.8, 20, 5)
    metrics = JudgeMetrics()
    metrics.show(JudgeStatus(50, 1, Spent(51, 10**8), agree, 0, {1: good}, raters, None), 1.0)
    return metrics


def hurried(files):
    """The exported files, but everything happens every second."""
    files = dict(files)
    for name in ("prometheus.yml", "rules.yml", "alertmanager.yml"):
        tree = yaml.safe_load(files[name])
        if name == "prometheus.yml":
            tree["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for group in tree.get("groups", ()):
            group["interval"] = "1s"
        if name == "alertmanager.yml":
            tree["route"] |= {"group_wait": "0s", "group_interval": "1s"}
        files[name] = yaml.safe_dump(tree)
    return files


def prometheus_command(folder, port):
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def alertmanager_command(folder, port):
    return [
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]


@contextlib.contextmanager
def running(folder, command):
    with (folder / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def questions():
    return {
        (board.uid, panel.title, ask.expr)
        for board in boards()
        for row in board.rows
        for panel in row.panels
        for ask in panel.asks
    }


def filled_in(expr):
    """As Grafana fills in what was chosen."""
    chosen = {"$recipe": "demo", "$model": ".*", "$__rate_interval": "1m"}
    for name, value in chosen.items():
        expr = expr.replace(name, value)
    return expr


def test_every_panel_of_every_dashboard_finds_data(world):
    waiting = questions()
    assert len(waiting) > 40

    def all_answered():
        for one in list(waiting):
            values = [float(series["value"][1]) for series in asked(world, one)]
            if any(value == value for value in values):
                waiting.discard(one)
        return not waiting

    deadline_s = time.monotonic() + 150
    while not all_answered():
        assert time.monotonic() < deadline_s, sorted(waiting)
        time.sleep(0.5)


def asked(world, question):
    try:
        return world.ask(filled_in(question[2]))
    except httpx.TransportError:
        return []  # it is not up yet


def alarms(world, name):
    """The alarms that an alert has raised."""
    found = Alarms(world.ledger).of("demo", limit=1_000)
    return [one for one in found if one.alarm.evidence.get("alert") == name]


def test_a_budget_that_burns_is_one_alarm_in_the_ledger(world):
    assert alarms(world, "SloBurnsFast") == []
    world.breaks.set()
    wait_until(lambda: alarms(world, "SloBurnsFast"), 150)
    record = alarms(world, "SloBurnsFast")[0]
    assert (record.alarm.kind, record.alarm.severity) == ("alert", "critical")
    assert record.state == AlarmState.OPEN
    evidence = record.alarm.evidence
    assert evidence["labels"]["recipe"] == "demo"
    assert evidence["labels"]["slo"] == "availability"
    assert "times too fast" in evidence["annotations"]["summary"]
    taken = httpx.get(world.server.metrics_url).text
    assert 'penstock_alerts_taken_total{outcome="firing"}' in taken


def test_a_target_that_is_gone_is_an_alarm_and_its_return_closes_it(world):
    port = int(world.ingest.url.split(":")[2].split("/")[0])
    world.ingest.close()
    wait_until(lambda: alarms(world, "GatewayDown"), 30)
    world.ingest = MetricsServer(ingested(), "127.0.0.1", port)
    wait_until(lambda: alarms(world, "GatewayDown")[0].state == AlarmState.CLOSED, 150)
    (record,) = alarms(world, "GatewayDown")
    assert [one.reason for one in Alarms(world.ledger).events(record.number)] == [
        "raised",
        "resolved",
    ]
    assert Alarms(world.ledger).events(record.number)[1].actor == "alertmanager"


def test_what_the_ledger_cannot_take_at_first_comes_again(world, monkeypatch):
    desk = world.server.gateway.alerts
    raise_, refused = desk._alarms.raise_, threading.Event()

    def away_once(alarm):
        if not refused.is_set():
            refused.set()
            raise LedgerError("It is away.")
        return raise_(alarm)

    monkeypatch.setattr(desk._alarms, "raise_", away_once)
    sent = [{"labels": {"alertname": "Patience", "recipe": "demo"}}]
    assert httpx.post(f"{world.alertmanager}/api/v2/alerts", json=sent).status_code == 200
    wait_until(lambda: alarms(world, "Patience"), 30)
    assert refused.is_set()


def test_an_alertmanager_with_another_secret_raises_nothing(world):
    """Real requests, refused: it is Alertmanager that must not be believed, not its form."""
    before = len(Alarms(world.ledger).of("demo", limit=1_000))
    secret = world.folder / "penstock_alerts_secret"
    secret.write_text("another secret than the gateway's")
    sent = [{"labels": {"alertname": "Forged", "recipe": "demo"}}]
    assert httpx.post(f"{world.alertmanager}/api/v2/alerts", json=sent).status_code == 200
    refused = 'llm_requests_total{endpoint="/v1/alerts",model="unknown",status="401"}'
    wait_until(lambda: refused in httpx.get(world.server.metrics_url).text, 30)
    secret.write_text(SECRET)
    assert len(Alarms(world.ledger).of("demo", limit=1_000)) == before
