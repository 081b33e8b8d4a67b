"""The loop's nodes in their order, and what is said of them: a plan, a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.artifacts import Artifact
from penstock.ledger import StageRecord
from penstock.stages import deploy, evaluate, gate, ingest, prepare, register, train, validate
from penstock.stages.base import Stage


@dataclass(frozen=True)
class Node:
    """A stage at its place in the loop; ``baseline`` is evaluate, of another model."""

    name: str
    stage: Stage


NODES = (
    Node("ingest", ingest.STAGE),
    Node("validate", validate.STAGE),
    Node("prepare", prepare.STAGE),
    Node("train", train.STAGE),
    Node("evaluate", evaluate.STAGE),
    Node("baseline", evaluate.STAGE),
    Node("gate", gate.STAGE),
    Node("register", register.STAGE),
    Node("deploy", deploy.STAGE),
)
NAMES = tuple(node.name for node in NODES)
# The two evaluations that the gate compares.
PAIR = {"evaluate": "baseline", "baseline": "evaluate"}
AFTER_DATA = NAMES[2:]
AFTER_GATE = NAMES[7:]


@dataclass(frozen=True)
class Planned:
    """What a run would do with one node, and why.

    Attributes:
        node: Its name.
        fingerprint: None when it cannot be known before an earlier stage has run.
        action: ``hit``, ``run`` or ``skip``.
        reason: One sentence.
    """

    node: str
    fingerprint: str | None
    action: str
    reason: str


@dataclass(frozen=True)
class Due:
    """Whether a run goes on after its data were validated, and if not, why not."""

    goes_on: bool
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What a run came to.

    Attributes:
        run_id: Its id.
        status: SUCCEEDED, BLOCKED, INCONCLUSIVE or SKIPPED.
        message: One sentence.
        stages: What each stage came to, in order.
        artifacts: Node name -> its result.
        duration_s: Wall time.
    """

    run_id: str
    status: str
    message: str
    stages: tuple[StageRecord, ...]
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or the gate's own code: 3 for BLOCK, 4 for INCONCLUSIVE."""
        gate = self.artifacts.get("gate")
        codes = {"BLOCK": 3, "INCONCLUSIVE": 4}
        return 0 if gate is None else codes.get(gate.summary["verdict"], 0)
