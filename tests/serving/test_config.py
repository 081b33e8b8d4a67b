import subprocess
import sys

import pytest
from pydantic import ValidationError

from penstock.serving.config import ServeConfig


def test_only_the_model_has_to_be_named_and_only_loopback_is_listened_on():
    config = ServeConfig(model="m")
    assert (config.host, config.port, config.metrics_port) == ("127.0.0.1", 8000, 9090)
    assert config.backend == "ctranslate2"
    assert config.embedding.model == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"port": 65536},
        {"max_queue": -1},
        {"max_concurrency": 0},
        {"request_timeout_s": 0},
        {"potr": 1},
    ],
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(ValidationError):
        ServeConfig(**{"model": "m", **wrong})


def test_the_config_imports_nothing_heavy():
    code = (
        "import sys, penstock.serving.config;"
        "heavy = {'torch', 'transformers', 'ctranslate2', 'numpy', 'starlette', 'uvicorn',"
        " 'prometheus_client', 'sentence_transformers', 'fastapi'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "[]"
