"""The recipe's ``deploy.rollout`` section: how a version that passed the gate takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from penstock.section import Section

if TYPE_CHECKING:
    from penstock.rollout import Terms

Points = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=1)]


class Margins(Section):
    """What must be shown before the next step; null demands nothing."""

    errors: Points | None = Field(0.01, description="Failed requests, in points: 0.01 is 1 of 100.")
    format: Points | None = Field(
        None, description="Answers without the form in `serve.models.NAME.format`, in points."
    )
    latency: Ratio | None = Field(1.3, description="At `latency_quantile`, as a ratio.")
    score: Points | None = Field(
        None, description="Users' and judges' scores in [0, 1], in points."
    )


class HarmAbove(Section):
    """How much worse is bad enough to be taken back."""

    errors: float = Field(0.0, ge=0, lt=1, description="In points; 0: any worse.")
    format: float = Field(0.0, ge=0, lt=1, description="In points.")
    latency: float = Field(1.0, ge=1, description="As a ratio; 1: any slower.")
    score: float = Field(0.0, ge=0, lt=1, description="In points.")


class RolloutSection(Section):
    """A trial on live requests before the pointer moves."""

    steps: list[float] = Field(
        [1, 5, 25, 100],
        description="Percent of the requests that the new version answers. 100 is the promotion.",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance of taking back a version that is no worse, over the whole trial.",
    )
    step_alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance that a version worse than a margin passes a step.",
    )
    margins: Margins = Margins()
    harm_above: HarmAbove = HarmAbove()
    latency: Literal["answer", "first_token"] = Field(
        "answer", description="Time to the whole answer, or to the first token of a stream."
    )
    latency_quantile: float = Field(
        0.99, gt=0, lt=1, description="Which quantile the latency's margin is about."
    )
    min_requests: int = Field(
        100, ge=1, description="Requests the new version answers in each step, at least."
    )
    max_requests: int = Field(
        100_000, ge=1, description="After so many in a step it is undecided, before the deadline."
    )
    step_deadline_s: Annotated[float, Field(gt=0)] | None = Field(
        24 * 3600.0, description="A step that takes longer is undecided; null waits."
    )
    on_undecided: Literal["rollback", "continue", "hold"] = Field(
        "rollback",
        description="`continue` goes on if `min_requests` were answered and nothing says worse; "
        "`hold` waits for a person.",
    )

    @model_validator(mode="after")
    def _hangs_together(self) -> RolloutSection:
        from penstock.errors import RecipeError
        from penstock.rollout import shares

        try:
            shares(self.steps)
        except RecipeError as error:
            raise ValueError(error.message) from None
        if self.min_requests > self.max_requests:
            raise ValueError(f"min_requests {self.min_requests} is above max_requests")
        for signal, least in self.harm_above:
            margin = getattr(self.margins, signal)
            if margin is not None and margin < least:
                raise ValueError(f"margins.{signal} {margin:g} is below harm_above {least:g}")
        return self

    def terms(self) -> Terms:
        """What a rollout goes by."""
        from penstock.gates.rollout_policy import RolloutPolicy, Signal, Tolerance
        from penstock.rollout import Terms

        tolerances = {
            signal.value: Tolerance(getattr(self.harm_above, signal), getattr(self.margins, signal))
            for signal in Signal
        }
        comparison = RolloutPolicy(
            alpha=self.alpha,
            step_alpha=self.step_alpha,
            latency_quantile=self.latency_quantile,
            min_requests=self.min_requests,
            max_requests=self.max_requests,
            **tolerances,
        )
        return Terms(comparison, self.step_deadline_s, self.on_undecided, self.latency)
