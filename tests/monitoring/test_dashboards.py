import json
import sys
from itertools import combinations

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from penstock.errors import MissingExtra
from penstock.monitoring.dashboards import boards, grafana_files

UIDS = ("penstock-service", "penstock-models", "penstock-data", "penstock-cost")


@pytest.fixture(scope="module")
def files():
    return grafana_files("http://prometheus:9091", "/etc/grafana/penstock")


@pytest.fixture(scope="module")
def dashboards(files):
    return {uid: json.loads(files[f"dashboards/{uid}.json"]) for uid in UIDS}


def panels(dashboard):
    return [one for one in dashboard["panels"] if one["type"] != "row"]


def read(dashboard):
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


def holds(whole, part):
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return whole == part


@pytest.mark.parametrize("uid", UIDS)
def test_a_dashboard_survives_being_read_as_grafana_reads_it(dashboards, uid):
    register_default_plugins()
    once = read(dashboards[uid])
    assert read(once) == once
    assert holds(once, dashboards[uid])  # defaults are added, and nothing is lost


@pytest.mark.parametrize("uid", UIDS)
def test_no_two_panels_lie_on_each_other_or_leave_the_grid(dashboards, uid):
    placed = [one["gridPos"] for one in dashboards[uid]["panels"]]
    assert all(one["x"] + one["w"] <= 24 for one in placed)
    for a, b in combinations(placed, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart or above, (a, b)
    ids = [one["id"] for one in dashboards[uid]["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("uid", UIDS)
def test_every_panel_asks_the_chosen_recipe_and_says_what_it_shows(dashboards, uid):
    for panel in panels(dashboards[uid]):
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert 'recipe="$recipe"' in target["expr"], panel["title"]
            assert target["datasource"]["uid"] == "$datasource"


def test_dashboards_have_addresses_that_stay(dashboards):
    assert tuple(board.uid for board in boards()) == UIDS
    assert {one["uid"] for one in dashboards.values()} == set(UIDS)


def test_grafana_is_told_where_dashboards_and_prometheus_are(files):
    (source,) = yaml.safe_load(files["provisioning/datasources/penstock.yml"])["datasources"]
    assert source["url"] == "http://prometheus:9091"
    (provider,) = yaml.safe_load(files["provisioning/dashboards/penstock.yml"])["providers"]
    assert provider["options"]["path"] == "/etc/grafana/penstock"


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch):
    for name in ("panels", "dashboards", "service_boards", "loop_boards"):
        monkeypatch.delitem(sys.modules, f"penstock.monitoring.{name}")
    monkeypatch.setitem(sys.modules, "grafana_foundation_sdk.builders", None)
    with pytest.raises(MissingExtra, match="grafana-foundation-sdk"):
        import penstock.monitoring.dashboards  # noqa: F401
