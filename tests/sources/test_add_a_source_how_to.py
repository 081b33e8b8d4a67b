"""The example in docs/how-to/add-a-source.md, taken from the page and run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml

from penstock import registry
from penstock.errors import SourceError
from penstock.sources.base import DeadLetter

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/add-a-source.md").read_text()

FAQ = """# Questions

## What is a penstock?
A gated pipe.

It feeds a turbine.
## Who asks?
## When?
Now.
"""


def block(language):
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return code


def conformance_tests():
    path = ROOT / "tests/conformance/test_sources.py"
    spec = importlib.util.spec_from_file_location("conformance_of_sources", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [test for name, test in vars(module).items() if name.startswith("test_")]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Builds the page's source as a recipe with the page's YAML would."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "faq_source", raising=False)
    (tmp_path / "faq_source.py").write_text(block("python"))
    (tmp_path / "faq.md").write_text(FAQ)
    config = yaml.safe_load(block("yaml"))["sources"]["faq"]
    adapter = registry.resolve("sources", config.pop("type"), tmp_path)
    yield lambda: adapter(adapter.Options.model_validate(config), tmp_path)
    sys.modules.pop("faq_source", None)


def test_the_example_reads_questions_and_keeps_what_is_not_one(make):
    source = make()
    (unit,) = source.snapshot()
    pieces = list(source.read(unit))
    (letter,) = [piece for piece in pieces if isinstance(piece, DeadLetter)]
    assert letter == DeadLetter("faq.md:7", "a question without an answer", "Who asks?")
    (batch,) = [piece for piece in pieces if not isinstance(piece, DeadLetter)]
    assert batch.to_pylist() == [
        {
            "instruction": "What is a penstock?",
            "response": "A gated pipe.\n\nIt feeds a turbine.",
            "_origin": "faq.md:3",
        },
        {"instruction": "When?", "response": "Now.", "_origin": "faq.md:8"},
    ]


@pytest.mark.parametrize("law", conformance_tests(), ids=lambda test: test.__name__)
def test_the_example_passes_the_conformance_suite(make, law):
    law(make)


def test_the_example_refuses_a_file_that_changed_or_is_missing(make, tmp_path):
    source = make()
    (unit,) = source.snapshot()
    (tmp_path / "faq.md").write_text("## Other\nText")
    with pytest.raises(SourceError, match="has changed"):
        list(source.read(unit))
    (tmp_path / "faq.md").unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        source.snapshot()


def test_the_page_names_every_reserved_column():
    from penstock.sources.base import RESERVED

    assert all(f"`{name}`" in PAGE for name in RESERVED)
