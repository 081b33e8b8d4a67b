"""The recipe's ``observe.retrain`` section: when the next run starts by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from penstock.section import Section

if TYPE_CHECKING:
    from penstock.gates.retrain_policy import RetrainPolicy

# As in ledger/alarms.py; what a person asks for always counts.
Kind = Literal["drift", "quality", "feedback", "alert", "schedule"]
Severity = Literal["info", "warning", "critical"]
Usd = Annotated[float, Field(ge=0)]
_HOUR_S = 3600.0


class NewData(Section):
    """An alarm of kind `schedule` when the sources have something new."""

    every_s: float = Field(_HOUR_S, gt=0, description="How often they are asked.")


class NewFeedback(Section):
    """An alarm of kind `feedback` when enough was said about answers."""

    every_s: float = Field(300.0, gt=0, description="How often it is counted.")
    min_new: int = Field(200, ge=1, description="Opinions since the last such alarm.")
    max_per_rater: int = Field(
        20, ge=1, description="Of one rater no more are counted, however many there are."
    )


class RetrainSection(Section):
    """`penstock watch`: which alarms start a run, and how often."""

    alarms: dict[Kind, Severity] = Field(
        {"drift": "warning", "quality": "warning", "feedback": "info", "schedule": "info"},
        description="Kind of alarm -> the least severity that starts a run: info, warning or "
        "critical. Kinds that are not named start none. `alert` is from Alertmanager.",
    )
    through: Literal["here", "airflow", "dagster", "prefect"] = Field(
        "here", description="Who runs it: `penstock watch` itself, or an orchestrator."
    )
    new_data: NewData | None = Field(None, description="Null: sources are not asked.")
    new_feedback: NewFeedback | None = Field(None, description="Null: opinions are not counted.")
    debounce_s: float = Field(
        300.0, ge=0, description="After the first alarm; all that come until then are one event."
    )
    cooldown_s: float = Field(
        6 * _HOUR_S, ge=0, description="From the end of a run, its trial included, to the next."
    )
    max_runs_per_week: int = Field(7, ge=1, description="In any seven days.")
    usd_per_run: Usd = Field(0.0, description="What a run is expected to cost.")
    usd_per_hour: Usd | None = Field(
        None, description="What an hour of a run costs; null counts `usd_per_run` for each."
    )
    max_usd_per_month: Usd | None = Field(
        None, description="Spent on runs in any 30 days. Null: no limit."
    )
    approval: Literal["none", "person"] = Field(
        "none", description="`person`: each start waits for `penstock watch approve`."
    )
    veto_s: float = Field(
        0.0, ge=0, description="After `debounce_s`; until then `penstock watch veto` forbids it."
    )
    max_failures: int = Field(
        3,
        ge=1,
        description="After so many runs in a row that failed, were blocked or taken back, nothing "
        "starts until `penstock watch resume`.",
    )
    lost_after_s: float = Field(
        6 * _HOUR_S,
        gt=0,
        description="An orchestrator's run that has not begun, or has failed and was not tried "
        "again, for so long has the outcome UNKNOWN or FAILED.",
    )
    max_run_s: float = Field(
        7 * 24 * _HOUR_S, gt=0, description="An orchestrator's run that takes longer: UNKNOWN."
    )

    def policy(self) -> RetrainPolicy:
        """What decisions go by."""
        from penstock.gates.retrain_policy import RetrainPolicy

        return RetrainPolicy(
            on={str(kind): str(least) for kind, least in self.alarms.items()},
            debounce_s=self.debounce_s,
            cooldown_s=self.cooldown_s,
            max_runs_per_week=self.max_runs_per_week,
            usd_per_run=self.usd_per_run,
            usd_per_hour=self.usd_per_hour,
            max_usd_per_month=self.max_usd_per_month,
            needs_approval=self.approval == "person",
            veto_s=self.veto_s,
            max_failures=self.max_failures,
        )
