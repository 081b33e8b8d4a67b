import re
import sys
from types import SimpleNamespace

import pytest

from penstock import registry
from penstock.errors import MissingExtra, RecipeError


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """``plugin(name, text)``: a module in a folder of its own; both are forgotten at the end."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if not name.startswith("penstock"):
            del sys.modules[name]


@pytest.fixture
def third_party(monkeypatch):
    """A package that adds a source by an entry point."""
    found = SimpleNamespace(name="orders", load=lambda: "the orders source")

    def entry_points(group, name=None):
        return [found] if group == "penstock.sources" and name in (None, "orders") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)


LIGHT = ["sources", "contracts", "transforms", "engines"]


@pytest.mark.parametrize(
    ("seam", "name"), [(seam, name) for seam in LIGHT for name in registry.BUILTIN[seam]]
)
def test_every_built_in_name_stands_for_a_class(seam, name):
    assert isinstance(registry.resolve(seam, name), type)


def test_a_third_partys_name_is_known_and_resolved(third_party):
    assert "orders" in registry.names("sources")
    assert registry.resolve("sources", "orders") == "the orders source"
    assert "orders" not in registry.names("transforms")


def test_a_built_in_name_cannot_be_taken_by_a_third_party(monkeypatch):
    impostor = SimpleNamespace(name="files", load=lambda: "impostor")
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: [impostor])
    assert registry.resolve("sources", "files").__module__ == "penstock.sources.files"
    assert registry.names("sources").count("files") == 1


def test_an_unknown_name_lists_the_valid_ones_and_the_nearest():
    with pytest.raises(RecipeError, match=r"'dedup' is not one of the transforms") as error:
        registry.resolve("transforms", "dedup")
    assert "Did you mean 'dedupe'?" in error.value.message
    assert ", ".join(registry.names("transforms")) in error.value.message


def test_a_name_that_is_like_no_other_gets_no_guess():
    with pytest.raises(RecipeError) as error:
        registry.resolve("transforms", "zzz")
    assert "Did you mean" not in error.value.message
    assert "Valid: " in error.value.message


def test_an_object_of_a_module_beside_the_recipe_is_found(plugin):
    folder = plugin("my_steps", "class Shout: ...")
    assert registry.resolve("transforms", "my_steps:Shout", folder).__name__ == "Shout"


def test_a_module_beside_the_recipe_never_shadows_an_installed_one(plugin):
    folder = plugin("json", "class Source: ...")
    plugin("yaml", "raise AssertionError('shadowed')")
    with pytest.raises(RecipeError, match="module 'json' has no 'Source'"):
        registry.resolve("sources", "json:Source", folder)
    assert sys.path[0] != str(folder)


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "nowhere_to_be_found:X", "there is no module 'nowhere_to_be_found'"),
        ("class Source: ...", "it:Sauce", "module 'it' has no 'Sauce'. Did you mean 'Source'?"),
        ("def (", "it:X", "importing 'it' failed: SyntaxError"),
        ("1 / 0", "it:X", "importing 'it' failed: ZeroDivisionError: division by zero"),
        ("import nowhere_either", "it:X", "needs 'nowhere_either', which is not installed"),
    ],
)
def test_a_module_that_cannot_be_used_says_why(plugin, text, target, message):
    folder = plugin("it", text)
    with pytest.raises(RecipeError, match=re.escape(message)):
        registry.resolve("sources", target, folder)


def test_a_plugins_own_error_passes_unchanged(plugin):
    folder = plugin(
        "needs_extra",
        "from penstock.registry import require\nrequire('no_such_library', 'kafka')",
    )
    with pytest.raises(MissingExtra, match="no_such_library is not installed"):
        registry.resolve("sources", "needs_extra:X", folder)


def test_a_missing_library_names_the_extra_to_install():
    with pytest.raises(MissingExtra) as error:
        registry.require("no_such_library.part", "kafka")
    assert error.value.message == "no_such_library is not installed."
    assert error.value.hint == 'Install it with: pip install "penstock[kafka]"'
    assert error.value.exit_code == 2


def test_a_library_that_is_installed_is_returned():
    assert registry.require("json", "extra") is __import__("json")


def test_a_library_that_misses_one_of_its_own_is_not_taken_for_missing(plugin, monkeypatch):
    folder = plugin("half_installed", "import its_missing_dependency")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency"):
        registry.require("half_installed", "extra")
