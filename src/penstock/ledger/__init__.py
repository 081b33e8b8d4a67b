"""The ledger: the only writer of truth.

One SQL database (SQLite in the store by default, PostgreSQL when several hosts
take part) that says which results exist, who is making which one now, what
serves, and how it came to. Everything a crash can interrupt is either one
transaction here or repaired by the next run.
"""

from penstock.ledger.claims import LEASE_S, Claim
from penstock.ledger.ledger import Ledger
from penstock.ledger.processes import actor, is_dead, this_process
from penstock.ledger.records import ModelVersion, Move, Pointer, RunRecord, StageRecord

__all__ = [
    "LEASE_S",
    "Claim",
    "Ledger",
    "ModelVersion",
    "Move",
    "Pointer",
    "RunRecord",
    "StageRecord",
    "actor",
    "is_dead",
    "this_process",
]
