"""One pass over the loop's nodes: what is there, what is missing, and making that.

For each node: find -> claim -> look again -> run -> commit the artifact ->
commit the record. A crash between any two of these leaves nothing that the
next run does not repair or reuse.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import version_files
from penstock.artifacts import Artifact, digest_of, fingerprint
from penstock.errors import LedgerError
from penstock.ledger import LEASE_S, Claim, ModelVersion, RunRecord, StageRecord
from penstock.nodes import AFTER_DATA, AFTER_GATE, NAMES, NODES, PAIR, Node, Planned, Report
from penstock.recipe import canonical
from penstock.stages import deploy, evaluate, ingest, prepare, train
from penstock.stages.base import Base, Job, Pinned
from penstock.train_section import registered

if TYPE_CHECKING:
    from penstock.pipeline import Pipeline


class Walk:
    """One pass over the nodes: each knows its fingerprint once its inputs do."""

    def __init__(
        self,
        pipeline: Pipeline,
        pinned: Pinned,
        run_id: str | None = None,
        force: Sequence[str] = (),
    ) -> None:
        self.pipeline = pipeline
        self.pinned = pinned
        self.run_id = run_id
        self.force = force
        self.prints: dict[str, str] = {}
        self.found: dict[str, Artifact] = {}

    # -- looking ---------------------------------------------------------------

    def resolve(self, node: Node) -> Artifact | None:
        """Work out a node's fingerprint and find its result, if there is one."""
        if node.name == "prepare":
            self.pinned = replace(self.pinned, base=self._base())
        inputs = self._input_prints(node)
        if inputs is None:
            return None
        stage = node.stage
        settings = stage.settings(self.pipeline.recipe, self.pinned)
        self.prints[node.name] = fingerprint(
            stage.name, stage.revision, settings, list(inputs.values())
        )
        artifact = self._intact(node)
        if artifact is not None:
            self.found[node.name] = artifact
        return artifact

    def plan(self, node: Node) -> Planned:
        """Hit, run or skip, and why."""
        skip = self._skip_reason(node)
        artifact = None if skip else self.resolve(node)
        print_ = self.prints.get(node.name)
        if skip:
            return Planned(node.name, None, "skip", skip)
        if artifact is not None:
            return Planned(node.name, print_, "hit", f"made by run {artifact.run_id}")
        if print_ is None:
            missing = next(name for name in node.stage.inputs if name not in self.found)
            return Planned(node.name, None, "run", f"depends on {missing}, which has to run")
        return Planned(node.name, print_, "run", self._why(node))

    def _input_prints(self, node: Node) -> dict[str, str] | None:
        """Fingerprints of the inputs by name; None if one is not known yet."""
        names = node.stage.inputs
        if node.stage is evaluate.STAGE and not evaluate.uses_examples(self.pipeline.recipe):
            names = tuple(name for name in names if name != "prepare")
        if node.name == "gate" and self._baseline() is None:
            names = tuple(name for name in names if name != "baseline")
        if any(name not in self.prints for name in names):
            return None
        prints = {name: self.prints[name] for name in names}
        if node.stage is not evaluate.STAGE:
            return prints
        # An evaluation is of a model, whatever training led to it: a training made
        # again may come out otherwise, and must not pass for the one that serves.
        digest = self._evaluated_digest(node)
        return None if digest is None else prints | {"train": digest}

    def _evaluated_digest(self, node: Node) -> str | None:
        """The digest of the model a node evaluates, once that model is there."""
        if node.name == "baseline":
            model = self._baseline()
            return None if model is None else model.digest
        return self.found["train"].content if "train" in self.found else None

    def _intact(self, node: Node) -> Artifact | None:
        """A recorded result that is still there, and was made of what its inputs are now."""
        artifact = self.pipeline.ledger.find(self.prints[node.name])
        if artifact is None or not self.pipeline.store.is_intact(artifact):
            return None
        if artifact.input_contents != self._input_contents(node):
            return None
        if self._is_measured_otherwise(node, artifact):
            return None
        for path, version in artifact.summary.get("tables", {}).items():
            if self.pipeline.store.table_at(path).version() < version:
                return None
        return artifact

    def _is_measured_otherwise(self, node: Node, artifact: Artifact) -> bool:
        """Whether candidate and baseline were measured by different versions of the libraries.

        Those of the default backend are in no fingerprint: an upgrade alone makes nobody
        evaluate again, and only a pair that is compared has to be of one kind.
        """
        other = self.found.get(PAIR.get(node.name, ""))
        return other is not None and other.summary.get("versions") != artifact.summary.get(
            "versions"
        )

    def _inputs(self, node: Node) -> dict[str, Artifact]:
        """The results a node reads, by input name, as far as they exist."""
        names = self._input_prints(node) or {}
        inputs = {name: self.found[name] for name in names if name in self.found}
        model = self._baseline() if node.name == "baseline" else None
        if model is not None:
            inputs["train"] = self._as_trained(model)
        return inputs

    def _as_trained(self, model: ModelVersion) -> Artifact:
        """The files that serve, as if a training had just made them.

        They are not those of the training's record when the same training was made
        again and came out otherwise; and some versions came without a recipe.
        """
        store = self.pipeline.store
        folder = version_files.folder_of(model, store).parent.relative_to(store.root)
        summary = {"model_digest": model.digest}
        return Artifact(model.train_fingerprint, train.STAGE.name, str(folder), "", summary)

    def _input_contents(self, node: Node) -> dict[str, str]:
        return {name: artifact.content for name, artifact in self._inputs(node).items()}

    def _base(self) -> Base | None:
        """The model to start from, chosen once for each state of the data.

        Pinned, because the choice is "what serves now": without the pin, the
        promotion a run ends with would make the next run train again.
        """
        pipeline = self.pipeline
        model_name = pipeline.recipe.model_name
        section = pipeline.recipe.train
        if not section.continue_from_production or section.classifier is not None:
            return self._named_base()
        key = f"base/{model_name}/{self.prints['validate']}"
        pointer = pipeline.ledger.pointer(model_name, pipeline.recipe.deploy.alias)
        version = pipeline.ledger.pinned(key) if self.run_id is None else None
        if version is None:
            version = {"version": pointer.version if pointer else None}
            if self.run_id is not None:
                version = pipeline.ledger.pin(key, version)
        if version["version"] is None:
            return self._named_base()
        model = pipeline.ledger.model(model_name, version["version"])
        return self._registered_base(model)

    def _named_base(self) -> Base | None:
        """What the recipe names under ``train.base``."""
        version = registered(self.pipeline.recipe.train.base)
        if version is None:
            return train.named_base(self.pipeline.recipe)
        pipeline = self.pipeline
        # A start like any other, and no continuation: of its rows nothing is assumed.
        model = version_files.find(*version, pipeline.recipe, pipeline.store, pipeline.ledger)
        return replace(self._registered_base(model), version=None, tables={})

    def _registered_base(self, model: ModelVersion) -> Base:
        trained = self.pipeline.ledger.find(model.train_fingerprint)
        return Base(
            label=f"{model.name} version {model.version}",
            identity=model.digest,
            location=str(version_files.folder_of(model, self.pipeline.store)),
            version=model.version,
            tables={} if trained is None else trained.summary["data"],
            registered=model,
        )

    def _baseline(self) -> ModelVersion | None:
        """The version to compare with: what serves, or what the candidate replaced."""
        recipe, ledger = self.pipeline.recipe, self.pipeline.ledger
        pointer = ledger.pointer(recipe.model_name, recipe.deploy.alias)
        if pointer is None:
            return None
        trained = self.found.get("train")
        candidate = None
        if trained is not None:
            digest = trained.summary["model_digest"]
            candidate = ledger.model_with_digest(recipe.model_name, digest)
        version: int | None = pointer.version
        if candidate is not None:
            moves = ledger.history(recipe.model_name, recipe.deploy.alias)
            mine = [move for move in moves if move.to_version == candidate.version]
            version = mine[0].from_version if mine else version
        return None if version is None else ledger.model(recipe.model_name, version)

    # -- deciding --------------------------------------------------------------

    def _skip_reason(self, node: Node) -> str:
        """Why a node is not due, or nothing."""
        if node.name == "baseline" and "train" in self.prints and self._baseline() is None:
            return "nothing serves yet: the first model is held to its floors"
        if node.name in AFTER_DATA and "validate" in self.found and not self.force:
            too_few = "" if self._is_prepared(node) else self._too_few()
            if too_few:
                return too_few
        if node.name in AFTER_GATE and "gate" in self.found:
            verdict = self.found["gate"].summary["verdict"]
            return "" if verdict == "PASS" else f"the gate said {verdict}"
        return ""

    def too_few(self) -> str:
        """Why this run has too little new data to go on with, or nothing.

        Raises:
            LedgerError: The data have not been validated.
        """
        if any(self.resolve(node) is None for node in NODES[:2]):
            raise LedgerError(
                "The data of this run have not been validated.", "Run the stages in order."
            )
        return self._too_few()

    def _is_prepared(self, node: Node) -> bool:
        """Whether this run was found due before: a task done twice must not see its own end."""
        if self.run_id is None or node.name == "prepare":
            return False
        stages = self.pipeline.ledger.stages(self.run_id)
        return any(one.stage == "prepare" and one.outcome != "skipped" for one in stages)

    def _too_few(self) -> str:
        needed = self.pipeline.recipe.ingest.min_new_examples
        new = self._new_examples()
        if new >= needed:
            return ""
        return f"{new:,} new examples since the last trained version, {needed:,} needed"

    def _new_examples(self) -> int:
        seen = self.pipeline.ledger.watermark(self._watermark_key()) or {}
        rows: Mapping[str, int] = self.found["validate"].summary["valid_rows"]
        return sum(count - seen.get(table, 0) for table, count in rows.items())

    def _watermark_key(self) -> str:
        """One watermark for each meaning of the later stages: new settings start anew."""
        recipe = self.pipeline.recipe
        sections = (recipe.prepare, recipe.train, recipe.evaluate, recipe.gate, recipe.deploy)
        meaning = [canonical(section) for section in sections]
        # Empty for the default, so that watermarks from before there was a choice stand.
        meaning += [section for section in [evaluate.backend_settings(recipe)] if section]
        revisions = [node.stage.revision for node in NODES]
        digest = digest_of([meaning, revisions, self.pinned.tasks_digest, recipe.seed])
        return f"{recipe.name}/{recipe.model_name}/{digest[:20]}"

    def _why(self, node: Node) -> str:
        """What differs from the newest result of the same stage."""
        before = self.pipeline.ledger.latest(self.pipeline.recipe.name, node.stage.name)
        if node.name in self.force:
            return "forced"
        if before is None:
            return "never run"
        if node.name in PAIR:
            found = self.pipeline.ledger.find(self.prints[node.name])
            if found is not None and self._is_measured_otherwise(node, found):
                return f"{PAIR[node.name]} was measured by other versions of the libraries"
        if before.fingerprint == self.prints[node.name]:
            return "its result is gone or damaged"
        settings = node.stage.settings(self.pipeline.recipe, self.pinned)
        changed = [f"{key} changed" for key in _changed(before.settings, settings)]
        inputs = self._input_prints(node) or {}
        changed += [f"new {key}" for key in inputs if before.inputs.get(key) != inputs[key]]
        return ", ".join(changed) or "new inputs"

    # -- doing -----------------------------------------------------------------

    def step(self, node: Node, must_hit: bool = False) -> StageRecord:
        """Bring one node to its result, and note how."""
        began = time.monotonic()
        skip = self._skip_reason(node)
        if skip:
            return self._note(node, "skipped", skip, began)
        artifact = self.resolve(node)
        if node.name not in self.prints:
            raise LedgerError(
                f"{node.name} cannot run: an earlier stage has no result.",
                "Run the stages in order, or use: penstock run",
            )
        if artifact is not None and node.name not in self.force:
            self._prune_hit(node, artifact)
            node.stage.reconcile(self._job(node, Path(), artifact.settings))
            return self._note(node, "hit", f"made by run {artifact.run_id}", began)
        if must_hit:
            raise LedgerError(
                f"--from starts after {node.name}, which has no result.", "Leave out --from."
            )
        why = self._why(node)
        outcome, artifact = self._make(node)
        self.found[node.name] = artifact
        record = self._note(node, outcome, why, began)
        if node.name == "baseline" and self._is_measured_otherwise(node, artifact):
            self.step(next(one for one in NODES if one.name == "evaluate"))
        return record

    def _make(self, node: Node) -> tuple[str, Artifact]:
        """Claim, look again, run, commit, record."""
        pipeline = self.pipeline
        with self._claimed(node) as claim:
            self._catch_up(node)
            print_ = self.prints[node.name]
            again = None if node.name in self.force else self._intact(node)
            if again is not None:
                return "hit", again
            began = time.monotonic()
            staged = pipeline.store.stage_folder(node.stage.name, print_)
            settings = node.stage.settings(pipeline.recipe, self.pinned)
            job = self._job(node, staged, settings)
            self._fetch_model(node)
            summary = node.stage.run(job)
            path, digest = pipeline.store.commit(staged, node.stage.name, print_)
            artifact = Artifact(
                fingerprint=print_,
                stage=node.stage.name,
                path=path,
                digest=digest,
                summary=summary,
                settings=settings,
                inputs=self._input_prints(node) or {},
                input_contents=self._input_contents(node),
                run_id=self.run_id or "",
                duration_s=time.monotonic() - began,
            )
            pipeline.ledger.record(artifact, pipeline.recipe.name, claim)
            self._prune(artifact)
            node.stage.reconcile(job)
            return "ran", artifact

    def _fetch_model(self, node: Node) -> None:
        """Bring the registered version that a node reads to the store, if only MLflow has it."""
        pipeline, model = self.pipeline, None
        if node.name == "baseline":
            model = self._baseline()
        elif node.stage in (prepare.STAGE, train.STAGE) and self.pinned.base is not None:
            model = self.pinned.base.registered
        if model is not None:
            version_files.fetched(model, pipeline.recipe, pipeline.store, pipeline.ledger)

    def _catch_up(self, node: Node) -> None:
        """Pin again where others have ingested more than this run has pinned.

        What a fingerprint says of the sources must be what the recorded table
        versions hold. Under the claim nobody commits to them, so it stays true.
        """
        pipeline = self.pipeline
        if node.stage is ingest.STAGE and ingest.is_overtaken(
            pipeline.recipe, pipeline.store, self.pinned
        ):
            self.pinned = replace(pipeline.pin_again(self.run_id), base=self.pinned.base)
            self.resolve(node)

    def _prune(self, artifact: Artifact) -> None:
        registered = [model.path for model in self.pipeline.ledger.models()]
        self.pipeline.store.prune(artifact, registered)

    def _prune_hit(self, node: Node, artifact: Artifact) -> None:
        """Remove what a kill between record and prune left of earlier attempts.

        Under the claim, and by the record that stands then: another worker may
        have committed the result anew, and not recorded it yet.
        """
        if not self.pipeline.store.has_earlier_attempts(artifact):
            return
        claim = self.pipeline.ledger.try_claim(self._claim_key(node))
        if claim is not None:
            with claim:
                now = self.pipeline.ledger.find(self.prints[node.name])
                if now is not None:
                    self._prune(now)

    def _job(self, node: Node, folder: Path, settings: Mapping[str, Any]) -> Job:
        return Job(
            recipe=self.pipeline.recipe,
            store=self.pipeline.store,
            ledger=self.pipeline.ledger,
            run_id=self.run_id or "",
            stage=node.stage.name,
            fingerprint=self.prints[node.name],
            settings=settings,
            inputs=self._inputs(node),
            pinned=self.pinned,
            folder=folder,
            progress=self.pipeline.progress,
        )

    def _claimed(self, node: Node) -> Claim:
        """The claim on a node's result, waited for while another worker has it."""
        key = self._claim_key(node)
        told = False
        while (claim := self.pipeline.ledger.try_claim(key)) is None:
            if not told:
                holder = self.pipeline.ledger.holder(key)
                self.pipeline.progress.say(f"{node.name}: waiting for {holder}, which is making it")
                told = True
            time.sleep(min(0.25, LEASE_S / 10))
        return claim

    def _claim_key(self, node: Node) -> str:
        if node.stage.writes_tables:
            return f"{self.pipeline.recipe.name}/{node.stage.name}"
        return self.prints[node.name]

    def _note(self, node: Node, outcome: str, note: str, began: float) -> StageRecord:
        record = StageRecord(
            stage=node.name,
            position=NAMES.index(node.name),
            fingerprint=self.prints.get(node.name),
            outcome=outcome,
            note=note,
            duration_s=time.monotonic() - began,
        )
        if self.run_id:
            self.pipeline.ledger.record_stage(self.run_id, record)
        return record

    def finish(self, record: RunRecord, complete: bool) -> Report:
        """Close the run; only a run that came to the end moves the watermark."""
        ledger = self.pipeline.ledger
        stages = tuple(ledger.stages(record.id))
        outcomes = {one.stage: one for one in stages}
        judged = "gate" in outcomes and outcomes["gate"].outcome != "skipped"
        status, message = self._outcome(stages, complete, judged)
        watermark = None
        if complete and judged:
            watermark = (self._watermark_key(), self.found["validate"].summary["valid_rows"])
        ledger.end_run(record.id, status, message, watermark)
        return self.pipeline.report(record.id)

    def _outcome(
        self, stages: Sequence[StageRecord], complete: bool, judged: bool
    ) -> tuple[str, str]:
        if not complete:
            return "SUCCEEDED", f"stopped after {stages[-1].stage}, as asked"
        if not judged:
            return "SKIPPED", next(one.note for one in stages if one.outcome == "skipped")
        summary = self.found["gate"].summary
        if summary["verdict"] != "PASS":
            status = "BLOCKED" if summary["verdict"] == "BLOCK" else "INCONCLUSIVE"
            return status, str(summary["reason"])
        recipe = self.pipeline.recipe
        pointer = self.pipeline.ledger.pointer(recipe.model_name, recipe.deploy.alias)
        version = pointer.version if pointer else "none"
        deployed = self.found.get(
            "deploy"
        )  # another run may have deployed, and this one skipped it
        if deployed is not None and "rollout" in deployed.summary:
            return "SUCCEEDED", deploy.trial(self.pipeline.ledger, deployed)
        return "SUCCEEDED", f"{recipe.model_name} version {version} is in {recipe.deploy.alias}"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of the settings that differ."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}"
