"""The recipe's ``observe`` section: what watches a model that serves."""

from __future__ import annotations

from pydantic import Field

from penstock.retrain_section import RetrainSection
from penstock.section import Section


class Observe(Section):
    """What is looked at while a version serves; none of it enters a fingerprint."""

    retrain: RetrainSection | None = Field(
        None,
        description="When the next run starts by itself. Null: a person starts each. `{}` takes "
        "the defaults.",
    )
