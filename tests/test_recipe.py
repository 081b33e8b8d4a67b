import json
import re
import string

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import RecipeError
from penstock.recipe import Recipe, canonical, json_schema
from penstock.recipe_file import load_recipe

GOOD = """
name: demo
sources:
  files:
    type: files
    paths: data/*.jsonl
evaluate:
  tasks: [word_order]
gate:
  min: {word_order: 0.6}
"""

FULL = """
name: demo
seed: 3
store: /elsewhere
sources:
  files:
    type: files
    paths: [a.jsonl, b.jsonl]
    columns: {instruction: question}
    types: {score: number}
ingest: {min_new_examples: 10}
validate:
  not_null: [instruction]
  length: {instruction: {min: 1, max: 10}}
  range: {}
  expectations:
    - name: expect_column_values_to_be_unique
      kwargs: {column: instruction}
  max_bad_rows: 0.1
prepare:
  transforms:
    - normalise
    - dedupe: {columns: [response]}
    - {type: split, validation: 0.1}
  max_length: 128
train: {epochs: 2, learning_rate: 0.002}
evaluate: {tasks: [word_order], num_fewshot: 0}
gate: {min: {word_order: 0.6}, max_regression: {word_order: 0.01}}
register: {model: penny}
deploy: {alias: canary}
serve: {port: 0, models: {m: {}}}
"""


def write(folder, text):
    path = folder / "recipe.yaml"
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def load(tmp_path):
    return lambda text=GOOD, **overrides: load_recipe(write(tmp_path, text), overrides)


@pytest.fixture
def mistakes(tmp_path):
    """``mistakes(text)``: the lines of the error that loading it gives."""

    def run(text, overrides=None):
        with pytest.raises(RecipeError) as error:
            load_recipe(write(tmp_path, text), overrides)
        first, *rest = error.value.message.splitlines()
        if not first.endswith(("mistake", "mistakes")):
            return [error.value.message]
        assert f": {len(rest)} mistake" in first
        return rest

    return run


def line_of(text, needle):
    return next(i for i, line in enumerate(text.splitlines(), 1) if needle in line)


# -- reading ----------------------------------------------------------------------


def test_a_recipe_of_the_required_sections_has_defaults_for_the_rest(load, tmp_path):
    recipe = load()
    assert (recipe.name, recipe.model_name, recipe.seed) == ("demo", "demo", 17)
    assert recipe.deploy.alias == "production"
    assert recipe.folder == tmp_path
    assert recipe.written == GOOD


def test_every_section_is_read(load):
    recipe = load(FULL)
    assert recipe.model_name == "penny"
    assert recipe.sources["files"].columns == {"instruction": "question"}
    assert [step.type for step in recipe.prepare.transforms] == ["normalise", "dedupe", "split"]
    assert recipe.prepare.transforms[1].extra == {"columns": ["response"]}
    assert recipe.validate_.expectations[0].kwargs == {"column": "instruction"}
    assert recipe.gate.max_regression == {"word_order": 0.01}
    assert list(recipe.serve.models) == ["m"]


def test_a_step_may_be_a_name_one_key_or_a_mapping_with_a_type(load):
    forms = ["dedupe", "{dedupe: null}", "{dedupe: {}}", "{type: dedupe}"]
    text = GOOD + "prepare: {transforms: [" + ", ".join(forms) + "]}\n"
    steps = load(text).prepare.transforms
    assert [canonical(step) for step in steps] == [{"type": "dedupe"}] * 4


def test_a_recipe_cannot_be_changed_after_it_was_checked(load):
    recipe = load()
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 7


def test_a_value_can_be_overridden_by_its_dotted_key(load):
    recipe = load(GOOD, **{"train.max_steps": 10, "seed": 4, "gate.min": {"word_order": 0.5}})
    assert (recipe.train.max_steps, recipe.seed) == (10, 4)
    assert recipe.gate.min == {"word_order": 0.5}
    assert "max_steps" not in recipe.written


def test_an_override_is_checked_like_the_file(mistakes):
    (line,) = mistakes(GOOD, {"train.max_stepz": 10})
    assert "train.max_stepz: unknown key. Did you mean 'max_steps'?" in line
    with_leaf = mistakes(GOOD, {"name.deeper": 1})
    assert with_leaf == ["--set name.deeper: 'name' is not a section."]


# -- files that are no recipe -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "is a list"),
        ("just text", "is a str"),
        ("42", "is a int"),
        ("a: [1, 2", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\tname: demo", "is not YAML"),
        ("name: demo\n---\nname: other\n", "is not YAML"),
        ("when: 2026-02-31", "is not YAML"),
        ("? [a, b]\n: 1\n", "is not YAML"),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 600, "nested too deeply"),
        ("a: !!python/object/apply:os.system [echo]", "is not YAML"),
        (b"\xff\xfe\x00\x01binary", "is not a text file in UTF-8"),
        (b"name: demo\x00\x01\n", "is not YAML"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_recipe_is_said(mistakes, tmp_path, text, said):
    (message,) = mistakes(text)
    assert said in message
    assert str(tmp_path / "recipe.yaml") in message


def test_a_recipe_that_is_not_there_says_how_to_write_one(tmp_path):
    with pytest.raises(RecipeError, match=r"no recipe at .*missing\.yaml") as error:
        load_recipe(tmp_path / "missing.yaml")
    assert "penstock init" in error.value.hint


def test_a_folder_in_place_of_a_recipe_says_which_file(tmp_path):
    with pytest.raises(RecipeError, match="is a folder") as error:
        load_recipe(tmp_path)
    assert str(tmp_path / "recipe.yaml") in error.value.hint


def test_a_path_through_a_file_is_said(tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "recipe.yaml" / "recipe.yaml")


# -- mistakes -----------------------------------------------------------------------


def test_every_mistake_is_reported_at_once_with_line_path_value_and_nearest_spelling(mistakes):
    text = """\
name: 7up
sources:
  files:
    type: filez
    paths: x
train:
  epochs: -1
  schedular: cosine
  scheduler: cosin
evaluate:
  tasks: []
gate: {min: {word_order: 0.6}}
validate:
  length:
    instruction: {min: one, max: 10}
"""
    found = {line.split(": ")[0].strip(): line for line in mistakes(text)}
    assert set(found) == {
        "line 1, name",
        "line 4, sources.files.type",
        "line 7, train.epochs",
        "line 8, train.schedular",
        "line 9, train.scheduler",
        "line 11, evaluate.tasks",
        "line 15, validate.length.instruction.min",
    }
    assert "received '7up'" in found["line 1, name"]
    assert "'filez'" in found["line 4, sources.files.type"]
    assert "Did you mean 'files'?" in found["line 4, sources.files.type"]
    assert "received -1" in found["line 7, train.epochs"]
    assert "unknown key. Did you mean 'scheduler'?" in found["line 8, train.schedular"]
    assert "Did you mean 'cosine'?" in found["line 9, train.scheduler"]
    assert "Valid: linear, cosine, constant" in found["line 9, train.scheduler"]
    assert "received 'one'" in found["line 15, validate.length.instruction.min"]


@pytest.mark.parametrize(
    ("addition", "path", "nearest"),
    [
        ("trian: {}", "trian", "train"),
        ("train: {model: {hiden_size: 8}}", "train.model.hiden_size", "hidden_size"),
        ("serve: {models: {m: {sorce: x}}}", "serve.models.m.sorce", "source"),
        ("validate: {length: {x: {min: 1, max: 2, mex: 3}}}", "validate.length.x.mex", "max"),
        (
            "validate: {expectations: [{name: x, kwarg: {}}]}",
            "validate.expectations.0.kwarg",
            "kwargs",
        ),
        (
            "prepare: {transforms: [{dedupe: {column: [x]}}]}",
            "prepare.transforms.0.column",
            "columns",
        ),
        (
            "prepare: {transforms: [{type: split, validaton: 0.1}]}",
            "prepare.transforms.0.validaton",
            "validation",
        ),
        ("prepare: {transforms: [dedup]}", "prepare.transforms.0.type", "dedupe"),
        ("prepare: {engine: locale}", "prepare.engine.type", "local"),
        ("train: {launcher: loca}", "train.launcher.type", "local"),
        (
            "serve: {models: {m: {backend: transformer}}}",
            "serve.models.m.backend.type",
            "transformers",
        ),
    ],
)
def test_a_wrong_key_or_name_at_any_depth_is_answered_with_the_nearest(
    mistakes, addition, path, nearest
):
    (line,) = mistakes(GOOD + addition + "\n")
    assert f", {path}: " in line
    assert f"Did you mean '{nearest}'?" in line
    assert "Valid: " in line


def test_a_wrong_option_of_a_source_is_found(mistakes):
    text = GOOD.replace("paths:", "path:")
    lines = mistakes(text)
    assert any("sources.files.path: unknown key. Did you mean 'paths'?" in one for one in lines)
    assert any("sources.files.paths: is required and missing" in one for one in lines)
    assert f"line {line_of(text, 'path:')}, sources.files.path:" in "\n".join(lines)


@pytest.mark.parametrize("missing", ["name", "sources", "evaluate"])
def test_a_missing_section_is_named(mistakes, missing):
    tree = yaml.safe_load(GOOD)
    del tree[missing]
    (line,) = mistakes(yaml.safe_dump(tree))
    assert f"{missing}: is required and missing" in line


def test_a_source_without_a_type_is_found(mistakes):
    assert any(
        "sources.files.type: is required and missing" in line
        for line in mistakes(GOOD.replace("    type: files\n", ""))
    )


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("validate: {length: {x: {min: 9, max: 1}}}", "min 9 is above max 1"),
        ("validate: {max_bad_rows: 1}", "less than 1"),
        ("validate: {range: {x: {min: .nan, max: 1}}}", "finite number"),
        ("train: {learning_rate: .inf}", "finite number"),
        ("seed: 1.5", "received 1.5"),
        ("seed: -1", "greater than or equal to 0"),
        ("deploy: {alias: Production Alias}", "received 'Production Alias'"),
        ("train:", "received None"),
    ],
)
def test_a_value_out_of_bounds_is_shown_with_the_bounds(mistakes, addition, said):
    assert any(said in line for line in mistakes(GOOD + addition + "\n"))


def test_a_word_that_yaml_takes_for_a_boolean_is_explained(mistakes):
    (line,) = mistakes(GOOD.replace("name: demo", "name: no"))
    assert "received False" in line
    assert "quote it" in line


def test_a_key_that_yaml_takes_for_a_boolean_is_a_mistake_not_a_crash(mistakes):
    (line,) = mistakes(GOOD + "on: {push: main}\n")
    assert "received {'push': 'main'}" in line
    assert "quote the key" in line


def test_keys_that_are_numbers_are_a_mistake_not_a_crash(mistakes):
    text = GOOD + "7: up\ntrain: {1: 2}\n"
    lines = mistakes(text)
    assert ["quote the key" in line for line in lines] == [True, True]


def test_a_key_written_twice_is_refused_because_yaml_would_drop_the_first(mistakes):
    text = GOOD + "train: {epochs: 1}\nseed: 1\ntrain: {epochs: 2}\n"
    (line,) = mistakes(text)
    first = line_of(text, "epochs: 1")
    assert line.strip() == f"line {first + 2}, train: is written twice, first in line {first}"


def test_anchors_and_merge_keys_may_be_used(load):
    text = GOOD.replace(
        "  files:\n    type: files\n    paths: data/*.jsonl\n",
        "  one: &one\n    type: files\n    paths: a.jsonl\n  two:\n    <<: *one\n",
    )
    assert load(text).sources["two"].extra["paths"] == "a.jsonl"


# -- plug-ins -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "said"),
    [
        ("no_such_module:Source", "there is no module 'no_such_module'"),
        ("broken_plugin:Source", "importing 'broken_plugin' failed: SyntaxError"),
        ("raising_plugin:Source", "importing 'raising_plugin' failed: ZeroDivisionError"),
        ("needy_plugin:Source", "needs 'no_such_library', which is not installed"),
        ("good_plugin:Sauce", "has no 'Sauce'. Did you mean 'Source'?"),
        ("good_plugin:", "has no ''"),
        ("os:getcwd", "it has no Options"),
        (":Source", "failed"),
        (".relative:Source", "failed"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_a_mistake_with_its_reason(
    mistakes, tmp_path, monkeypatch, type_, said
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_plugin.py").write_text("def (")
    (tmp_path / "raising_plugin.py").write_text("1 / 0")
    (tmp_path / "needy_plugin.py").write_text("import no_such_library")
    (tmp_path / "good_plugin.py").write_text("class Source: ...")
    (line,) = mistakes(GOOD.replace("type: files", f'type: "{type_}"'))
    assert "sources.files.type: " in line
    assert said in line


def test_a_plugin_beside_the_recipe_checks_its_own_options(load, mistakes, tmp_path):
    (tmp_path / "my_source_of_rows.py").write_text(
        "from penstock.sources.base import Options\n"
        "class Rows:\n"
        "    class Options(Options):\n"
        "        count: int\n"
    )
    plugin = 'type: "my_source_of_rows:Rows"'
    text = GOOD.replace("type: files", plugin).replace("paths: data/*.jsonl", "count: 3")
    recipe = load(text)
    _, options = recipe.plugin("sources", recipe.sources["files"])
    assert options.count == 3
    (line,) = mistakes(text.replace("count: 3", "count: three"))
    assert "sources.files.count: received 'three'" in line
    lines = mistakes(text.replace("count: 3", "cuont: 3"))
    assert any("Did you mean 'count'?" in line for line in lines)


# -- the environment ----------------------------------------------------------------


def test_a_variable_of_the_environment_is_expanded_and_not_recorded(load, monkeypatch):
    monkeypatch.setenv("LEDGER_PASSWORD", "s3cret")
    text = GOOD + "ledger: postgresql://me:${LEDGER_PASSWORD}@host/name\n"
    recipe = load(text)
    assert recipe.ledger == "postgresql://me:s3cret@host/name"
    assert recipe.written == text
    assert "s3cret" not in recipe.written


def test_variables_are_expanded_at_any_depth_and_become_numbers_where_needed(load, monkeypatch):
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("DATA", "/data")
    text = GOOD.replace("data/*", "${DATA}/*") + "serve: {port: '${PORT}'}\n"
    recipe = load(text)
    assert recipe.serve.port == 8123
    assert recipe.sources["files"].extra["paths"] == "/data/*.jsonl"


def test_every_missing_variable_is_named_with_its_place(mistakes):
    text = GOOD + "ledger: ${NO_SUCH_VARIABLE}\ntracking: ${NOR_THIS}\n"
    lines = mistakes(text)
    assert any("ledger: the environment has no variable 'NO_SUCH_VARIABLE'" in one for one in lines)
    assert any("tracking: the environment has no variable 'NOR_THIS'" in one for one in lines)


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("name: demo", "name: ${SECRET}"),
        ("name: demo", "name: demo\nseed: ${SECRET}"),
        ("name: demo", "name: demo\nserve: {models: {m: {backend: '${SECRET}'}}}"),
        ("name: demo", "name: demo\ntrain: {scheduler: '${SECRET}'}"),
        ("type: files", "type: ${SECRET}"),
        ("type: files", "type: '${SECRET}:x'"),
        ("type: files", "type: files\n    encoding: ${SECRET}"),
        ("type: files", "type: files\n    delimiter: ${SECRET}"),
        ("tasks: [word_order]", "tasks: [x]\n  limit: ${SECRET}"),
        ("name: demo", "name: demo\nprepare: {transforms: ['${SECRET}']}"),
        ("name: demo", "name: demo\nprepare: {transforms: [{split: {validation: '${SECRET}'}}]}"),
    ],
)
@pytest.mark.parametrize("secret", ["hunter 2!", "it's \\s3cret"])
def test_a_secret_is_never_shown_in_an_error(mistakes, monkeypatch, place, written, secret):
    monkeypatch.setenv("SECRET", secret)
    shown = "\n".join(mistakes(GOOD.replace(place, written)))
    assert secret not in shown
    assert repr(secret)[1:-1] not in shown
    assert "SECRET}" in shown


def test_a_dollar_without_braces_is_left_alone(load):
    text = GOOD.replace("data/*.jsonl", "costs $HOME.jsonl")
    assert load(text).sources["files"].extra["paths"] == "costs $HOME.jsonl"


# -- what it means ------------------------------------------------------------------


def test_fields_that_came_later_change_no_fingerprint_until_they_are_used(load):
    form = canonical(load())
    assert "text_column" not in form["prepare"]
    assert not {"packing", "packed_attention"} & set(form["train"])
    used = canonical(load(GOOD + "train: {packing: whole}\nprepare: {text_column: body}\n"))
    assert used["prepare"]["text_column"] == "body"
    assert used["train"]["packing"] == "whole"


def test_the_canonical_form_is_plain_json_without_places(load):
    text = FULL + "ledger: sqlite:///x.db\ntracking: http://host\n"
    form = canonical(load(text))
    assert json.loads(json.dumps(form, allow_nan=False)) == form
    shown = json.dumps(form)
    for place in ("elsewhere", "x.db", "http://host", "port", "launcher", "engine"):
        assert place not in shown


@pytest.mark.parametrize(
    "addition",
    [
        "store: /somewhere/else",
        "ledger: postgresql://me@host/name",
        "tracking: http://host:5000",
        "prepare: {engine: 'module:Engine'}",
        "train: {launcher: 'module:Launcher', checkpoint_every_steps: 7}",
        "serve: {port: 1, max_queue: 1}",
        "# a comment",
        "seed: 17",
    ],
)
def test_moving_a_project_changes_nothing_of_what_it_means(load, addition):
    assert canonical(load(GOOD + addition + "\n")) == canonical(load())


def test_the_order_of_keys_changes_nothing_of_what_it_means(load):
    tree = yaml.safe_load(FULL)
    backwards = {key: tree[key] for key in reversed(tree)}
    text = yaml.safe_dump(backwards, sort_keys=False)
    one, other = canonical(load(FULL)), canonical(load(text))
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize(
    "addition",
    ["seed: 18", "train: {epochs: 2}", "validate: {not_null: []}", "deploy: {alias: canary}"],
)
def test_asking_for_something_else_changes_what_it_means(load, addition):
    assert canonical(load(GOOD + addition + "\n")) != canonical(load())


def test_a_whole_number_means_the_same_as_its_decimal(load):
    one, other = load(GOOD + "train: {epochs: 2}\n"), load(GOOD + "train: {epochs: 2.0}\n")
    assert json.dumps(canonical(one)) == json.dumps(canonical(other))


@pytest.mark.parametrize("text", [GOOD, FULL], ids=["good", "full"])
def test_a_recipe_written_out_again_is_the_same_recipe(load, text):
    recipe = load(text)
    written = yaml.safe_dump(json.loads(recipe.model_dump_json(by_alias=True)))
    again = load(written)
    assert canonical(again) == canonical(recipe)
    assert again.sources["files"].extra == recipe.sources["files"].extra


# -- the JSON Schema ----------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.slow
@pytest.mark.parametrize("text", [GOOD, FULL], ids=["good", "full"])
def test_the_json_schema_accepts_a_good_recipe(validator, text):
    assert list(validator.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    "addition",
    [
        "trian: {}",
        "train: {epochs: -1}",
        "train: {scheduler: cosin}",
        "validate: {max_bad_rows: 2}",
        "prepare: {transforms: [7]}",
        "prepare: {transforms: [{a: {}, b: {}}]}",
        "seed: text",
    ],
)
def test_the_json_schema_refuses_a_bad_recipe(validator, addition):
    assert list(validator.iter_errors(yaml.safe_load(GOOD + addition))) != []


def test_the_json_schema_knows_the_built_in_adapters_and_their_options(validator):
    source = validator.schema["$defs"]["SourceConfig"]["properties"]
    assert "files" in source["type"]["examples"]
    assert "encoding" in source


# -- anything at all ------------------------------------------------------------------


KEYS = st.sampled_from(
    [
        *(info.alias or name for name, info in Recipe.model_fields.items()),
        *("type", "paths", "tasks", "min", "transforms", "columns", "length", "on", "<<"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(),
    st.text(string.printable, max_size=12),
    st.sampled_from(["files", "local", "a:b", "scratch", "${HOME}", "${X Y}", "dedupe"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
QUIET = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def succeeds_or_explains(folder, text):
    try:
        recipe = load_recipe(write(folder, text))
    except RecipeError as error:
        message = error.message
    else:
        json.dumps(canonical(recipe), allow_nan=False)
        return
    assert str(folder) in message
    assert not re.search(r"object at 0x|Traceback", message)


@pytest.mark.slow
@QUIET
@given(tree=st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_is_a_recipe_or_a_recipe_error(tmp_path, tree):
    base = yaml.safe_load(GOOD)
    succeeds_or_explains(tmp_path, yaml.safe_dump({**base, **tree}))
    succeeds_or_explains(tmp_path, yaml.safe_dump(tree))


@pytest.mark.slow
@QUIET
@given(text=st.text(alphabet=st.sampled_from("ab01 \n\t:-?,[]{}&*!|>%@`\"'#~.<=$\0é"), max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(tmp_path, text):
    succeeds_or_explains(tmp_path, text)
    succeeds_or_explains(tmp_path, GOOD + text)


@QUIET
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_a_recipe_error(tmp_path, data):
    succeeds_or_explains(tmp_path, data)


def test_sections_that_contradict_each_other_are_named_without_an_empty_place(mistakes):
    said = mistakes(GOOD + "prepare: {max_length: 1024}\n")
    assert said == ["  prepare.max_length 1024 is above train.model.max_position_embeddings 512"]


def test_a_held_out_task_without_validation_rows_is_found_before_the_training(mistakes):
    held_out = GOOD.replace("tasks: [word_order]", "tasks: [held_out]")
    assert held_out != GOOD
    for transforms in ("[normalise]", "[{split: {validation: 0}}]"):
        (said,) = mistakes(f"{held_out}prepare: {{transforms: {transforms}}}\n")
        assert said.startswith("  evaluate.tasks: 'held_out' is made from validation rows")


def test_a_relative_sqlite_file_lies_beside_the_recipe(tmp_path, monkeypatch):
    recipe = load_recipe(write(tmp_path, GOOD))
    monkeypatch.chdir("/")
    assert recipe.database("sqlite:///x.db") == f"sqlite:///{tmp_path / 'x.db'}"
    for url in ("sqlite:////tmp/x.db", "sqlite:///:memory:", "sqlite://", "postgresql://h/d"):
        assert recipe.database(url) == url


def test_a_recipe_from_before_lora_means_what_it_did(load):
    assert "lora" not in canonical(load())["train"]
    with_lora = canonical(load(GOOD + "train: {base: x, lora: {rank: 4}}\n"))["train"]["lora"]
    assert with_lora == {"rank": 4, "alpha": 32.0, "dropout": 0.0, "target_modules": None}


@pytest.mark.parametrize(
    "text", ["local", "{local: }", "{type: local}", "{type: 'module:Launcher', at: home}"]
)
def test_a_launcher_is_a_name_or_a_section_and_never_enters_a_meaning(load, text):
    assert canonical(load(GOOD + f"train: {{launcher: {text}}}\n")) == canonical(load())


def test_a_wrong_option_of_a_launcher_is_found(mistakes):
    (line,) = mistakes(GOOD + "train: {launcher: {local: {workers: 2}}}\n")
    assert ", train.launcher.workers: unknown key." in line


@pytest.mark.parametrize("base", ["models:/tiny@production", "models:/tiny", "models:/tiny/0"])
def test_a_registered_base_is_a_name_and_a_version(mistakes, base):
    (line,) = mistakes(GOOD + f"train: {{base: '{base}'}}\n")
    assert "models:/NAME/VERSION" in line
