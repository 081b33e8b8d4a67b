"""The recipe's ``observe.slo`` section: what users were promised, and when to wake somebody."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from penstock.section import Section

# The bounds that the gateway's histograms have: between them nothing can be told.
DURATION_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10, 30)
FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# A budget above a half is spent so slowly that the fast alerts could never fire.
Objective = Annotated[float, Field(gt=0.5, lt=1)]


def _bound(bounds: tuple[float, ...]) -> AfterValidator:
    def check(within_s: float) -> float:
        if within_s not in bounds:
            raise ValueError(f"not a bound of its histogram: {', '.join(map(str, bounds))}")
        return within_s

    return AfterValidator(check)


class DurationObjective(Section):
    """How many whole answers are given in time."""

    within_s: Annotated[float, _bound(DURATION_BUCKETS_S)] = Field(
        10, description="In time is within this: 0.1, 0.5, 1, 2, 5, 10 or 30."
    )
    share: Objective = Field(0.95, description="Of the requests.")


class FirstTokenObjective(Section):
    """How many answers begin in time."""

    within_s: Annotated[float, _bound(FIRST_TOKEN_BUCKETS_S)] = Field(
        2.5,
        description="In time is within this: 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, "
        "5, 10 or 30.",
    )
    share: Objective = Field(0.95, description="Of the generated answers.")


class Slo(Section):
    """Objectives of every served model, and the thresholds of the other alerts."""

    availability: Objective = Field(
        0.999, description="Share of the requests that get no server error (5xx)."
    )
    latency: DurationObjective | None = Field(
        DurationObjective(), description="Null: no objective for whole answers."
    )
    first_token: FirstTokenObjective | None = Field(
        FirstTokenObjective(), description="Null: no objective for first tokens."
    )
    window_days: int = Field(
        30, ge=7, le=90, description="An error budget is for so many days; Prometheus keeps them."
    )
    min_requests: int = Field(
        20, ge=1, description="No budget burns while an alert's window has fewer requests."
    )
    queue_share: float = Field(
        0.8, gt=0, le=1, description="A queue filled so far for five minutes is an alert."
    )
    down_s: int = Field(
        120, ge=0, description="A gateway or model that is away longer is an alert."
    )
    budget_share: float = Field(
        0.9, gt=0, le=1, description="A key's budget spent so far is an alert."
    )
    max_days_without_training: Annotated[float, Field(gt=0)] | None = Field(
        14, description="No new version for longer is an alert. Null: never."
    )
    secret_env: str = Field(
        "PENSTOCK_ALERTS_SECRET",
        pattern=r"^[A-Z][A-Z0-9_]{0,99}$",
        description="The environment variable with the secret of `POST /v1/alerts`, at least 16 "
        "characters. While it is not set the gateway takes no alerts.",
    )
