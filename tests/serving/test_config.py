import subprocess
import sys

import pytest
from pydantic import ValidationError

from penstock.serve_section import Serve


def test_nothing_has_to_be_said_and_only_loopback_is_listened_on():
    config = Serve().completed("m")
    assert (config.host, config.port, config.metrics_port) == ("127.0.0.1", 8000, 9090)
    assert {name: one.task for name, one in config.models.items()} == {
        "m": "generate",
        "all-MiniLM-L6-v2": "embed",
    }
    assert config.models["m"].registered == "m"
    assert config.models["m"].backend_name == "ctranslate2"


def test_models_that_are_named_are_the_only_ones():
    config = Serve(models={"a": {"backend": {"vllm_like:B": {"x": 1}}}}).completed("m")
    assert list(config.models) == ["a"]
    assert (config.models["a"].backend_name, config.models["a"].options) == (
        "vllm_like:B",
        {"x": 1},
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"port": 65536}, "port"),
        ({"max_queue": -1}, "max_queue"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"potr": 1}, "potr"),
        ({"models": {"m": {"registered": "a", "source": "b"}}}, "comes from one of them"),
        ({"models": {"m": {"labels": ["a"]}}}, "classifier"),
        ({"models": {"m": {"backend": "vlm"}}}, "not one of the backends"),
        ({"models": {"m": {"replicas": {"min": 3, "max": 2}}}}, "min 3 is above max 2"),
        ({"models": {"m": {"fallbacks": ["x"]}}}, "no model 'x'"),
        ({"models": {"m": {}}, "routes": {"r": {"to": "x"}}}, "no model 'x'"),
        ({"models": {"m": {}}, "routes": {"m": {"to": "m"}}}, "a model's name already"),
        ({"routes": {"r": {"to": "m"}}}, "name the models"),
        (
            {"models": {"m": {"fallbacks": ["v"]}, "v": {"task": "embed", "source": "x"}}},
            "different things: embed, generate",
        ),
        (
            {"models": {"m": {}}, "routes": {"r": {"to": "m", "classifier": "m"}}},
            "does not classify",
        ),
        (
            {
                "models": {"m": {}},
                "routes": {"r": {"to": "m", "rules": [{"when": {"intent": "i"}, "to": "m"}]}},
            },
            "name the classifier",
        ),
    ],
)
def test_a_wrong_setting_is_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        Serve.model_validate(wrong)


def test_the_section_imports_nothing_heavy():
    code = (
        "import sys, penstock.serve_section;"
        "heavy = {'torch', 'transformers', 'ctranslate2', 'numpy', 'starlette', 'uvicorn',"
        " 'prometheus_client', 'sentence_transformers', 'fastapi'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"
