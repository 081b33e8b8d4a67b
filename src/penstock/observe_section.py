"""The recipe's ``observe`` section: what is watched while a model serves."""

from __future__ import annotations

from penstock.section import Section
from penstock.slo_section import Slo


class Observe(Section):
    """None of it enters a fingerprint."""

    slo: Slo = Slo()
