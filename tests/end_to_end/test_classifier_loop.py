"""A classifier goes the way of every model: trained, gated, registered, deployed, served."""

import json
import os
import random
import urllib.request

import pytest

import classifier_project
from penstock.artifacts import damaged_files
from penstock.errors import TrainingError
from penstock.pipeline import open_pipeline
from penstock.serve_section import Serve
from penstock.serving.production import served
from penstock.serving.server import BackgroundServer
from penstock.stages import classify

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def quiet():
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "GX_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Tests here follow each other: each leaves the project to the next."""
    folder = tmp_path_factory.mktemp("classifier") / "project"
    classifier_project.write_project(folder)
    return folder


def run(folder):
    pipeline = open_pipeline(folder / "recipe.yaml", {}, None)
    try:
        report = pipeline.run()
        pointer = pipeline.ledger.pointer("intent", "production")
        return report, {one.stage: one.outcome for one in report.stages}, pointer
    finally:
        pipeline.ledger.close()


def summary(folder, report, stage):
    pipeline = open_pipeline(folder / "recipe.yaml", {}, None)
    try:
        return pipeline.ledger.latest("intent", stage).summary
    finally:
        pipeline.ledger.close()


def ask(url, texts):
    body = json.dumps({"model": "intent", "input": texts}).encode()
    request = urllib.request.Request(
        f"{url}/v1/classify", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def test_a_training_that_was_interrupted_embeds_nothing_twice(project, monkeypatch):
    encoded = []
    encode = classify.Encoder.encode
    monkeypatch.setattr(
        classify.Encoder,
        "encode",
        lambda self, texts, *rest: encoded.extend(texts) or encode(self, texts, *rest),
    )
    with monkeypatch.context() as patch:
        patch.setattr(classify, "fit", lambda *_: (_ for _ in ()).throw(TrainingError("killed")))
        with pytest.raises(TrainingError, match="killed"):
            run(project)
    rows = set(encoded) - {"warm"}
    assert len(rows) > 300
    encoded.clear()
    report, outcomes, pointer = run(project)
    assert report.status == "SUCCEEDED"
    # Only the evaluation embeds what it is about.
    assert len([text for text in encoded if text != "warm"]) < len(rows) / 2
    assert pointer.version == 1
    assert outcomes["deploy"] == "ran"


def test_a_second_run_finds_everything_done(project):
    _, outcomes, pointer = run(project)
    assert "ran" not in outcomes.values()
    assert pointer.version == 1


def test_the_version_is_whole_by_itself_and_measured_on_held_out_rows(project):
    trained = summary(project, None, "train")
    (folder,) = [path.parent for path in (project / "store").rglob("head.safetensors")]
    assert damaged_files(folder) == []
    assert json.loads((folder / "labels.json").read_text())["labels"] == ["billing", "technical"]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert names == {"head.safetensors", "encoder/model.safetensors"}
    assert trained["num_trained_parameters"] == 2 * 32 + 2
    measured = summary(project, None, "evaluate")
    assert measured["num_items"]["held_out"] > 80
    assert measured["metrics"]["held_out/acc"] > 0.9
    assert trained["validation_loss"] < 0.5


def test_the_gateway_serves_it_without_being_told_more(project):
    pipeline = open_pipeline(project / "recipe.yaml", {}, None)
    serve, around = served(pipeline.recipe, pipeline.store, pipeline.ledger)
    only = {"models": {"intent": serve.models["intent"]}, "port": 0, "metrics_port": None}
    chance = random.Random(99)
    rows = [classifier_project.row(chance) for _ in range(40)]
    with BackgroundServer(Serve(**serve.model_dump() | only), around) as server:
        server.wait_ready(60)
        answers = ask(server.url, [row["text"] for row in rows])
    pipeline.ledger.close()
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) > 35
    assert all(abs(sum(answer["probs"]) - 1) < 1e-4 for answer in answers)


def test_a_version_that_is_not_worse_is_promoted(project):
    classifier_project.write_rows(project / "data" / "second.jsonl", 200, seed=2)
    report, outcomes, pointer = run(project)
    assert report.status == "SUCCEEDED"
    assert outcomes["baseline"] == "ran"
    assert pointer.version == 2


def test_a_version_that_learned_from_shuffled_labels_is_blocked(project):
    (project / "spoil.py").write_text(classifier_project.SPOIL)
    steps = [*classifier_project.RECIPE["prepare"]["transforms"], "spoil:Spoil"]
    recipe = classifier_project.RECIPE | {
        "prepare": {"transforms": steps},
        "gate": {"min": {"held_out": 0.0}, "max_regression": 0.05},
        "ingest": {"min_new_examples": 0},
    }
    classifier_project.write_recipe(project, recipe)
    report, _, pointer = run(project)
    assert summary(project, report, "gate")["verdict"] == "BLOCK"
    assert pointer.version == 2
