"""The recipe's ``observe`` section: what watches a model that serves."""

from __future__ import annotations

from pydantic import Field

from penstock.drift_section import DriftSection
from penstock.judge_section import JudgeSection
from penstock.retrain_section import RetrainSection
from penstock.section import Section
from penstock.slo_section import Slo


class Observe(Section):
    """What is looked at while a version serves; none of it enters a fingerprint."""

    drift: DriftSection | None = Field(
        None,
        description="Whether requests and answers have changed. Null: nobody looks. `{}` takes "
        "the defaults.",
    )
    judge: JudgeSection | None = Field(
        None, description="A model that judges sampled answers. Null: none does."
    )
    slo: Slo = Slo()
    retrain: RetrainSection | None = Field(
        None,
        description="When the next run starts by itself. Null: a person starts each. `{}` takes "
        "the defaults.",
    )
