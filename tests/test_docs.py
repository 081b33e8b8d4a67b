"""What the pages say is held to the code: links, recipes, commands, flags and names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from penstock.cli import app
from penstock.pipeline import NAMES, NODES
from penstock.recipe_file import load_recipe
from penstock.stages.base import Pinned

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
FENCE = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# What a recipe needs at least, so that a part of one can be shown and still be checked.
LEAST = {
    "name": "shown",
    "sources": {"rows": {"type": "files", "paths": ["rows.jsonl"]}},
    "evaluate": {"tasks": ["held_out"]},
    "gate": {"max": {"held_out": 8.0}},
}

COMMANDS = typer.main.get_command(app)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, *languages):
    """The fenced blocks of a page whose info string is one of ``languages``."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [body for info, body in found if info.strip() in languages]


def prose(page):
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_recipe_reference_is_up_to_date():
    command = [sys.executable, str(ROOT / "scripts/write_recipe_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_reference_says_of_min_new_examples_is_true(tmp_path):
    # It is no place, but no stage looks at it either.
    text = yaml.safe_dump(LEAST)
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    few = load_recipe(path, {"ingest.min_new_examples": 1})
    many = load_recipe(path, {"ingest.min_new_examples": 2})
    units = Pinned(units={"rows": ()})
    for node in NODES:
        assert node.stage.settings(few, units) == node.stage.settings(many, units)


# -- links -----------------------------------------------------------------------


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@every_page
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: there is no {found}"
        assert not anchor or anchor in headings(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*/*.md")), ids=lambda p: p.stem)
def test_every_page_is_listed(page):
    """How-tos in docs/index.md, decisions in docs/decisions/README.md."""
    index = page.parent / "README.md"
    if page == index:
        return
    if not index.exists():
        index = ROOT / "docs" / "index.md"
    assert f"{page.name})" in index.read_text(encoding="utf-8")


# -- recipes ---------------------------------------------------------------------


def recipes():
    """Every recipe on a page, whole or a part of one; a page about a plug-in has its own test."""
    for page in PAGES:
        for text in blocks(page, "yaml", "yaml complete"):
            if not re.search(r"type: \w+:\w+", text):
                is_whole = text in blocks(page, "yaml complete")
                yield pytest.param(text, is_whole, id=f"{page.stem} {text.split(':')[0]}")


@pytest.mark.parametrize(("text", "is_whole"), list(recipes()))
def test_recipes_that_are_shown_load(text, is_whole, tmp_path, monkeypatch):
    for variable in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(variable, "secret")
    path = tmp_path / "recipe.yaml"
    path.write_text(text if is_whole else yaml.safe_dump(LEAST | yaml.safe_load(text)))
    assert load_recipe(path).sources


# -- commands --------------------------------------------------------------------


def command_lines(page):
    """Every ``penstock ...`` of a page, as a list of words."""
    spans = re.findall(r"`(penstock [^`\n]+)`", prose(page))
    for line in "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ").splitlines():
        # Also inside of $(...) and after && and ||.
        spans += re.findall(r"(?:^|\$\(|&& |\|\| )\s*(penstock [^|&)#>]+)", line)
    return [shlex.split(span.replace("...", ""), comments=True)[1:] for span in spans]


@every_page
def test_commands_that_are_shown_exist(page):
    for words in command_lines(page):
        command, rest = COMMANDS, list(words)
        while rest and getattr(command, "commands", None) and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"penstock {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        known = {flag for param in command.params for flag in param.opts} | {"--help"}
        given = {word.partition("=")[0] for word in rest if word.startswith("-")}
        if command.context_settings.get("ignore_unknown_options"):  # --min-TASK and --max-TASK
            given = {flag for flag in given if not re.match("--(min|max)-.", flag)} | (
                given & known
            )
        assert given <= known, f"penstock {' '.join(words)}: {sorted(given - known)}"


@every_page
def test_python_that_is_shown_compiles(page):
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@every_page
def test_targets_of_make_that_are_shown_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M):
        assert f"\n{target}:" in makefile, f"make {target}"


def test_the_orchestrator_page_lists_the_stages_in_order():
    text = (ROOT / "docs/how-to/run-stages-from-an-orchestrator.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in NAMES) in " ".join(text.split())


def test_metrics_that_are_shown_exist():
    from penstock.monitoring.metrics import ServingMetrics

    text = (ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"`((?:llm|penstock)_[a-z_]+)`", text))
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in ServingMetrics().registry.collect()
    }
    assert shown == families
