"""What keeps a project from working: every part looked at, with what to do about it.

Nothing is changed by looking: no table is made, no folder, no run. Each check has a
few seconds, and one that breaks is a finding like any other.

::

    environment.py   Python, packages, torch, disk, memory
    services.py      ledger, store, MLflow, the gateway, who receives traces, credentials
    history.py       what serves, runs, claims and the clock, by the ledger
"""

from penstock.doctor.examination import diagnose
from penstock.doctor.finding import Finding

__all__ = ["Finding", "diagnose"]
