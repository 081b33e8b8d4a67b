"""A project with something on every page of the console, written as the stages would write it."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa
import yaml

import traffic_rows
from penstock.artifacts import Artifact
from penstock.gates import GatePolicy, gate_results
from penstock.gates.retrain_policy import decide
from penstock.ledger import ModelVersion, StageRecord, schema
from penstock.ledger.alarms import Alarm, Alarms, AlarmState
from penstock.ledger.retrain_log import Entry, Line
from penstock.ledger.rollouts import Rollouts
from penstock.pipeline import open_pipeline
from penstock.promotion import Production
from penstock.retrain import Loop
from penstock.rollout import Opening
from penstock.rollout_control import start
from penstock.rollout_section import RolloutSection
from penstock.sources.base import Unit
from penstock.stages.validate import _QUARANTINE_SCHEMA, QUARANTINE, valid_tables
from penstock.tables import Position, numbered
from rollout_world import MODEL, Registry

_EVALUATIONS = Path(__file__).parent / "gates" / "lm_eval_output"
RECIPE = {
    "name": MODEL,
    "store": "store",
    "sources": {"tickets": {"type": "files", "paths": "data.jsonl"}},
    "evaluate": {"tasks": ["sums"]},
    "gate": {"min": {"sums": 0.5}},
    "observe": {"retrain": {"debounce_s": 0}},
}


class ConsoleProject:
    """The project.

    Args:
        folder: Where.
        mark: Stands in every text that comes from outside.
    """

    def __init__(self, folder, mark=""):
        self.mark = mark
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        (folder / "data.jsonl").write_text('{"instruction": "hi", "response": "hello"}\n')
        self.pipeline = open_pipeline(self.recipe)
        self.ledger = self.pipeline.ledger
        self.registry = Registry(folder)
        self._failed_run()
        self._alarms()
        self.run_id = self._runs()
        for number in (1, 2, 3):
            self.ledger.add_model(self._version(number))
        self.production().promote(1, f"gate PASS: first version{mark}")
        self.row_ids = self._quarantine()
        self._feedback()
        self._spending()

    def production(self):
        return Production(self.ledger, self.registry, MODEL, "production")

    @property
    def serving(self):
        return self.ledger.pointer(MODEL, "production").version

    @property
    def rollouts(self):
        return Rollouts(self.ledger.database)

    def start_trial(self, challenger=2):
        section = RolloutSection()
        opening = Opening(
            *(MODEL, "production", self.serving, challenger), section.terms(), section.steps
        )
        return start(self.rollouts, opening, self.production())

    def _version(self, number):
        return ModelVersion(
            name=MODEL,
            version=number,
            train_fingerprint=self.prints["train"] if number == 1 else f"{number:064x}",
            digest=f"{number:02x}" * 32,
            path=f"artifacts/train/{number}",
            run_id=self.run_id,
            data_version=f"tickets@{number}{self.mark}",
        )

    # -- alarms ----------------------------------------------------------------------

    def _alarms(self):
        """One that led to a run, one that was vetoed, one that starts none, one that waits."""
        alarms = Alarms(self.ledger)
        self._raise("drift", "version 1, window 2026-11-20")
        self.alarm_run = self._answer()
        vetoed = self._raise("quality", "refusals")
        alarms.decide(vetoed.number, AlarmState.VETOED, f"a test of ours{self.mark}")
        self._raise("alert", "PenstockErrors", severity="critical")
        self._raise("drift", "version 1, window 2026-11-27")
        self.decide()

    def _raise(self, kind, key, **more):
        evidence = {"window": f"2026-11-27{self.mark}", "statistic": 9_123.4, "threshold": 7_300}
        raised = Alarm(MODEL, kind, f"{key}{self.mark}", 1.8e9, evidence=evidence, **more)
        return Alarms(self.ledger).raise_(raised)

    def decide(self):
        """Decide as a watcher would, and write it down."""
        recipe = self.pipeline.recipe
        loop = Loop(recipe, self.ledger, recipe.observe.retrain.policy())
        story = loop.story()
        situation = loop.situation(story)
        decision = decide(situation, loop.policy)
        assert loop.record(decision, situation, story)
        return loop, decision

    def _answer(self):
        """A run for the alarm that is open; it is blocked."""
        loop, decision = self.decide()
        run = self.ledger.start_run(MODEL, "", "", {}, key=decision.key)
        self.ledger.end_run(run.id, "BLOCKED", "sums fell")
        told = {"outcome": "BLOCKED", "duration_s": 3.0, "run_id": run.id}
        loop.log.add(Entry(Line.ENDED, f"BLOCKED: sums fell{self.mark}", told, decision.key))
        return run.id

    # -- runs ------------------------------------------------------------------------

    def _failed_run(self):
        mark = self.mark
        failed = self.ledger.start_run(MODEL, f"name: {MODEL}\n# {mark}", "", {"seed": mark or 1})
        self.ledger.end_run(failed.id, "FAILED", f"More than 1 % of the rows are bad. {mark}")

    def _runs(self):
        mark = self.mark
        run = self.ledger.start_run(MODEL, self.recipe.read_text(), "", {})
        self.prints = {}
        for position, (stage, outcome, note, summary) in enumerate(self._stages()):
            print_ = self._artifact(run.id, stage, summary) if summary else None
            record = StageRecord(stage, position, print_, outcome, note, 1.5 * position)
            self.ledger.record_stage(run.id, record)
        self.ledger.end_run(run.id, "SUCCEEDED", f"penny version 1 promoted to production{mark}")
        return run.id

    def _stages(self):
        mark = self.mark
        tables = self.pipeline.store.table(MODEL, "raw-tickets").key
        units = [vars(Unit(f"data.jsonl{mark}", 1, f"data.jsonl{mark}"))]
        ingested = {
            "rows": {"out": 12_410, "total": 12_410},
            "dead_letters": 3,
            "tables": {tables: 0},
            "raw_rows": {tables: 12_410},
            "units": {"tickets": units},
        }
        prepared = {
            "rows": {"in": 12_288, "removed": 1_904, "out": 10_384},
            "splits": {"train": 9_865, "validation": 519},
            "removed": {f"dedupe{mark}": 1_731, "quality": 173},
        }
        trained = {
            "num_parameters": 853_000,
            "base": "",
            "num_steps": 900,
            "train_loss": 2.113,
            "rows": {"out": 9_865},
            "data": {"tickets": 0},
        }
        return [
            ("ingest", "ran", f"1 new unit{mark}", ingested),
            ("validate", "ran", "ingest came out otherwise", {
                "rows": {"in": 12_410, "quarantined": 122, "out": 12_288},
                "data": {"tickets": 0},
            }),
            ("prepare", "ran", "validate came out otherwise", prepared),
            ("train", "ran", "prepare came out otherwise", trained),
            ("evaluate", "ran", "", {"metrics": {f"sums{mark}/acc": 0.91}}),
            ("baseline", "skipped", "nothing serves yet", None),
            ("gate", "ran", "", {"verdict": "PASS", "reason": f"sums holds. {mark}",
                                 "baseline_version": None}),
            ("register", "hit", "made by an earlier run", {"model": MODEL, "version": 1}),
            ("deploy", "ran", "", {"message": f"version 1 promoted{mark}", "version": 1}),
        ]  # fmt: skip

    def _artifact(self, run_id, stage, summary):
        print_ = f"{len(self.prints) + 10:064x}"
        store = self.pipeline.store
        folder = store.stage_folder(stage, print_)
        if stage == "gate":
            policy = GatePolicy(min={"sums": 0.5})
            decision = gate_results(_EVALUATIONS / "candidate", _EVALUATIONS / "baseline", policy)
            said = replace(decision, reasons=(*decision.reasons, f"Looked at it.{self.mark}"))
            (folder / "decision.json").write_text(said.to_json())
        path, digest = store.commit(folder, stage, print_)
        before = {"prepare": "validate", "validate": "ingest", "train": "prepare"}.get(stage)
        artifact = Artifact(
            fingerprint=print_,
            stage=stage,
            path=path,
            digest=digest,
            summary=summary,
            settings={"tables": {"tickets": "raw-tickets"}},
            inputs={before: self.prints[before]} if before else {},
            run_id=run_id,
            duration_s=2.0,
        )
        with self.ledger.try_claim(print_) as claim:
            self.ledger.record(artifact, MODEL, claim)
        self.prints[stage] = print_
        return print_

    # -- rows, opinions, use -----------------------------------------------------------

    def _quarantine(self):
        contract = valid_tables(self.pipeline.recipe)["tickets"]
        ids = [f"{number:032x}" for number in (0xA1, 0xB2, 0xC3)]
        rows = [
            json.dumps({"instruction": f"How do I reset it? {self.mark}", "response": "no"}),
            json.dumps({"instruction": "Where is my invoice?", "response": "ok"}),
            json.dumps({"instruction": None, "response": "See the settings page."}),
        ]
        rules = [f"length of response at least 3{self.mark}"] * 2 + ["instruction is not null"]
        origins = [f"data.jsonl:{line}{self.mark}" for line in (7, 31, 58)]
        values = (ids, ["tickets"] * 3, origins, [contract] * 3, rules, ["no", "ok", None], rows)
        names = _QUARANTINE_SCHEMA.names[: len(values)]
        columns = dict(zip(names, values, strict=True))
        batch = pa.RecordBatch.from_pydict(columns, pa.schema(list(_QUARANTINE_SCHEMA)[:7]))
        table = self.pipeline.store.table(MODEL, QUARANTINE)
        table.append_once(
            Position(contract, 1),
            _QUARANTINE_SCHEMA,
            lambda version: numbered([batch], version, _QUARANTINE_SCHEMA),
        )
        return ids

    def _feedback(self):
        writers = traffic_rows.Writers(self.pipeline.store.root)
        name, older = traffic_rows.response_id(), traffic_rows.response_id(1)
        writers.say(traffic_rows.opinion(older, score=0.0, comment="Wrong page."))
        writers.say(
            traffic_rows.opinion(name, comment=f"Just right.{self.mark}", rater=f"ann{self.mark}"),
            traffic_rows.correction(name, f"Open Settings, then Billing.{self.mark}"),
        )

    def _spending(self):
        rows = [
            {
                "day": f"2026-11-{day:02d}",
                "key_id": "",
                "model": f"{MODEL}{self.mark}",
                "requests": 40 * day,
                "prompt_tokens": 9_000 * day,
                "completion_tokens": 4_000 * day,
                "nanousd": 310_000_000 * (day % 5),
            }
            for day in range(16, 24)
        ]
        versions = [
            {key: value for key, value in row.items() if key != "key_id"}
            | {"version": 1, "run_id": self.run_id}
            for row in rows
        ]
        with self.ledger.database.write() as connection:
            connection.execute(sa.insert(schema.spending), rows)
            connection.execute(sa.insert(schema.version_spending), versions)
