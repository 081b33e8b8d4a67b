"""What is shown of a recipe holds no secret that somebody typed into it."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from penstock.cli import app
from penstock.typed_secrets import is_secret, masked, masked_values

TYPED = """\
name: support
ledger: postgresql://ann:hunter2@hunter2@db:5432/penstock
tracking: http://${USER}:${PASSWORD}@mlflow:5000
# password: hunter2
store: .penstock  # the old one had token = hunter2
sources:
  tickets:
    type: rest
    url: https://api.test/v1?api_key=hunter2&page=1
    headers: {Authorization: Bearer hunter2, X-Api-Key: 'hunter2', Accept: json}
    password: hunter2
    token: ${TOKEN}
    auth: &auth
      client_secret: |
        hunter2
        hunter2
      bearer_token: "hunter2"
      pin_password: 20022
      credentials: [hunter2, hunter2]
    again: *auth
    secret_env: TICKETS_SECRET
    password: hunter2
train:
  max_tokens: 4096
  pad_token: <pad>
  token_budget_tokens: null
serve:
  keys: true
  models:
    far: {source: sk-abcdefghijklmnopqrstuvwxyz0123}
"""


def test_secrets_become_asterisks_and_the_rest_stays_as_it_was_written():
    shown = masked(TYPED)
    assert "hunter2" not in shown
    assert "20022" not in shown
    assert "sk-abc" not in shown
    assert "ledger: postgresql://[SECRET]@db:5432/penstock" in shown
    assert "url: https://api.test/v1?api_key=[SECRET]&page=1" in shown
    assert "{Authorization: [SECRET], X-Api-Key: [SECRET], Accept: json}" in shown
    assert "# password: [SECRET]" in shown
    for kept in (
        *("http://${USER}:${PASSWORD}@mlflow:5000", "token: ${TOKEN}", "keys: true"),
        *("secret_env: TICKETS_SECRET", "max_tokens: 4096", "pad_token: <pad>"),
    ):
        assert kept in shown
    assert len(shown.splitlines()) == len(TYPED.splitlines()) - 2  # of the block
    assert yaml.safe_load(shown)["sources"]["tickets"]["type"] == "rest"


def test_a_recipe_without_secrets_is_shown_as_it_is():
    clean = "name: a  # a comment\nserve: {port: 8000}\nstore: s3://bucket/folder\n"
    assert masked(clean) == clean


def test_what_is_no_yaml_is_masked_line_by_line():
    assert masked("a: [\npassword: hunter2\nb: c") == "a: [\npassword: [SECRET]\nb: c"


def test_settings_are_masked_by_their_names_and_by_what_they_hold():
    shown = masked_values(
        {
            "sources.tickets.password": "hunter2",
            "sources.far": {"url": "https://ann:hunter2@h.test", "keys": [{"api_key": "hunter2"}]},
            "train.max_tokens": 5,
            "sources.tickets.token": "${TOKEN}",
        }
    )
    assert "hunter2" not in str(shown)
    assert shown["train.max_tokens"] == 5
    assert shown["sources.tickets.token"] == "${TOKEN}"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("password", "dbPassword", "api_key", "X-Api-Key", "apikey")),
        *((name, True) for name in ("aws_secret_access_key", "token", "private-key", "Cookie")),
        *((name, False) for name in ("max_tokens", "keys", "key", "tokenizer", "api_key_env")),
        *((name, False) for name in ("primary_key", "eos_token", "secret_name", "", "passing")),
    ],
)
def test_a_name_tells_whether_it_is_a_secrets(name, secret):
    assert is_secret(name) is secret


def test_no_command_shows_what_was_typed(tmp_path, monkeypatch):
    from console_project import RECIPE
    from penstock.pipeline import open_pipeline

    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump(RECIPE) + "\n# token: hunter2\n"
    (tmp_path / "recipe.yaml").write_text(text)
    pipeline = open_pipeline(tmp_path / "recipe.yaml", {"tracking": "http://ann:hunter2@h.test"})
    run = pipeline.start()
    for words in (["runs", "--json"], ["show", run.id, "--json"], ["runs"], ["show", run.id]):
        said = CliRunner().invoke(app, words).output
        assert run.id in said or words[0] == "show"
        assert "hunter2" not in said
    (shown,) = json.loads(CliRunner().invoke(app, ["runs", "--json"]).output)
    assert shown["overrides"] == {"tracking": "http://[SECRET]@h.test"}
    assert "hunter2" in pipeline.ledger.run(run.id).written
