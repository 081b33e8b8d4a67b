import pytest
from pydantic import ValidationError

from penstock.traces_section import TracesConfig


def test_traces_hold_no_content_and_are_redacted_unless_asked():
    config = TracesConfig(to="phoenix")
    assert (config.content, config.redact, config.trust_traceparent) == (False, True, False)
    assert config.sample == 1.0


@pytest.mark.parametrize(
    "endpoint",
    [
        "file:///etc/passwd",
        "ftp://host/",
        "127.0.0.1:6006",
        "http://",
        "http:///v1/traces",
        "https://user:hunter2@host",
        "https://hunter2@host",
        "https://host?token=hunter2",
        "https://host#hunter2",
        "http://host:99999",
        "http://ho st",
        "http://host\r\nx: hunter2",
        "http://[::1",
    ],
)
def test_an_endpoint_that_is_no_plain_web_address_is_refused_and_not_shown(endpoint):
    with pytest.raises(ValidationError) as caught:
        TracesConfig(to="otlp", endpoint=endpoint)
    (error,) = caught.value.errors()
    assert error["loc"] == ("endpoint",)
    assert "hunter2" not in error["msg"]


@pytest.mark.parametrize(
    "endpoint", ["http://[::1]:4318", "https://host/base", "http://127.0.0.1:1"]
)
def test_a_web_address_is_taken_as_it_is(endpoint):
    assert TracesConfig(to="otlp", endpoint=endpoint + "/").endpoint == endpoint


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "datadog"},
        {"sample": 1.5},
        {"sample": float("nan")},
        {"project": "a\nb"},
        {"project": ""},
        {"projekt": "a"},
        {"api_key": "secret"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TracesConfig(**{"to": "phoenix", **wrong})
