"""Every page of the console, asked over ASGI, on a project whose texts are hostile."""

from html.parser import HTMLParser

import httpx
import pytest

from console_project import ConsoleProject
from penstock.console import create_console
from rollout_world import MODEL

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = ConsoleProject(tmp_path_factory.mktemp("console"), HOSTILE)
    made.trial = made.start_trial().id
    return made


@pytest.fixture(scope="module")
def get(project):
    app = create_console(project.pipeline, production=project.production)
    transport = httpx.ASGITransport(app)

    def call(path, host="127.0.0.1:8010", **headers):
        import asyncio

        async def ask():
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())

    return call


class Page(HTMLParser):
    """Tags, and where links and forms lead."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.targets, self.events, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("href", "src", "action")]
        self.events += [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def paths(project):
    gate = project.prints["gate"]
    row = project.row_ids[0]
    return [
        *("/", "/runs", f"/runs/{project.run_id}", "/gates", f"/gates/{gate}", "/versions"),
        *("/versions/1", "/versions/2", "/rollouts", f"/rollouts/{project.trial}"),
        *("/quarantine", "/quarantine?source=tickets&rule=length", "/feedback", "/cost", "/plan"),
        *("/versions/2/promote", f"/rollouts/{project.trial}/stop"),
        *(f"/rollouts/{project.trial}/promote", f"/quarantine/release?row={row}"),
        "/quarantine/drop?source=tickets&rule=length",
        *("/alarms", "/alarms?before=2", "/alarms/1", "/alarms/2", "/alarms/3", "/alarms/4"),
        *("/alarms/4/acknowledge", "/alarms/4/veto", "/drift", "/drift/topics"),
        "/traffic",
        *("/alarms/pause", "/alarms/resume", "/alarms/approve"),
    ]


@pytest.mark.slow
def test_no_page_lets_a_text_from_outside_become_markup(project, get):
    for path in paths(project):
        answer = get(f"/console{path}")
        assert answer.status_code == 200, (path, answer.text)
        page = Page(answer.text)
        assert "script" not in page.tags, path
        assert "img" not in page.tags, path
        assert page.events == [], path
        own = all(one.startswith(("/console", "#", "data:,")) for one in page.targets)
        assert own, (path, page.targets)


@pytest.mark.slow
def test_every_page_forbids_scripts_frames_and_other_hosts(project, get):
    for path in [*paths(project), "/console.css", "/nowhere"]:
        headers = get(f"/console{path}").headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'"), path
        assert "frame-ancestors 'none'" in policy
        assert "script" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_hostile_texts_are_shown_as_they_are(project, get):
    for path in (
        *("/", "/quarantine", "/feedback", "/cost", f"/runs/{project.run_id}"),
        *("/alarms", "/alarms/1", "/alarms/2"),
    ):
        assert "<script>alert(1)</script>" in Page(get(f"/console{path}").text).text, path


def test_the_loop_says_what_became_of_each_stage_and_why(project, get):
    text = Page(get("/console/").text).text
    assert f"{MODEL} version 1" in text
    assert "baseline skipped nothing serves yet" in text
    assert "12,288 1,904 10,384" in text


def test_a_run_accounts_for_its_rows(project, get):
    text = Page(get(f"/console/runs/{project.run_id}").text).text
    assert "10,384 kept, 1,904 removed" in text
    assert "quality 173" in text
    assert "12,410 rows ingested in all, 3 new dead letters" in text


def test_a_version_leads_back_to_its_sources(project, get):
    text = Page(get("/console/versions/1").text).text
    assert "12,288 rows in, 1,904 removed" in text
    assert "12,410 rows from 1 units" in text
    assert "The ledger does not know" in Page(get("/console/versions/2").text).text


@pytest.mark.parametrize("what", ["gate", "run", "rollout"])
def test_a_report_is_shown_in_a_sandbox(project, get, what):
    paths = {
        "gate": f"/gates/{project.prints['gate']}",
        "run": f"/runs/{project.run_id}",
        "rollout": f"/rollouts/{project.trial}",
    }
    assert f'href="/console{paths[what]}/report"' in get(f"/console{paths[what]}").text
    answer = get(f"/console{paths[what]}/report")
    assert "<svg" in answer.text
    assert "script" not in Page(answer.text).tags
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy


def test_a_trial_shows_its_counts_and_its_log(project, get):
    text = Page(get(f"/console/rollouts/{project.trial}").text).text
    assert "0 requests of the champion" in text
    assert "step 1 of" in text


def test_cost_is_summed_and_drawn(project, get):
    answer = get("/console/cost")
    assert "<svg" in answer.text
    total = f"{sum(40 * day for day in range(16, 24)):,}"
    text = Page(answer.text).text
    for name in (f"{MODEL}{HOSTILE} 1", project.run_id, "no tenant", "no key"):
        assert f"{name} {total}" in text
    assert f'href="/console/runs/{project.run_id}"' in answer.text


def test_feedback_comes_newest_first(get):
    text = Page(get("/console/feedback").text).text
    assert text.index("Open Settings, then Billing.") < text.index("Wrong page.")


def test_the_plan_asks_the_sources(get):
    text = Page(get("/console/plan").text).text
    assert "ingest run" in text


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nothing",
        "/versions/99",
        "/gates/..%2f..%2f..%2fetc%2fpasswd",
        "/gates/../../recipe.yaml",
        "/rollouts/%2e%2e%2f",
        "/runs/nothing/report",
        "/rollouts/nothing/report",
        "/../recipe.yaml",
        "/console.css/../../../recipe.yaml",
        "/versions/1e3",
        "/quarantine?source=../../etc",
        "/quarantine/release?row=zz",
        "/quarantine/release",
    ],
)
def test_what_is_not_there_is_404_and_shows_no_file(get, path):
    answer = get(f"/console{path}")
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "sources:" not in answer.text


def test_an_artifact_of_another_stage_is_no_decision(project, get):
    assert get(f"/console/gates/{project.prints['train']}/report").status_code == 404


def test_a_run_of_another_recipe_is_not_shown(project, get):
    other = project.ledger.start_run("another", "secret", "", {})
    answer = get(f"/console/runs/{other.id}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_the_root_leads_to_the_console(get):
    for path in ("/", "/console"):
        answer = get(path)
        assert (answer.status_code, answer.headers["location"]) == (307, "/console/")


def test_a_page_that_breaks_shows_no_traceback(project, get, monkeypatch, caplog):
    def broken(self):
        raise RuntimeError("hunter2")

    monkeypatch.setattr("penstock.console.desk.Desk.costs", broken)
    answer = get("/console/cost")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert "hunter2" in caplog.text


def test_an_empty_project_has_every_page(tmp_path):
    import asyncio

    import yaml

    from console_project import RECIPE
    from penstock.pipeline import open_pipeline

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    app = create_console(open_pipeline(tmp_path / "recipe.yaml"))

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in (
                "",
                "runs",
                "gates",
                "versions",
                "rollouts",
                "quarantine",
                "feedback",
                "alarms",
            ):
                assert (await client.get(f"/console/{path}")).status_code == 200, path
            for path in ("traffic", "quarantine", "feedback", "cost"):
                assert (await client.get(f"/console/{path}")).status_code == 200, path
            assert (await client.get("/console/rollback")).status_code == 404

    asyncio.run(ask())
