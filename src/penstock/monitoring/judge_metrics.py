"""What Prometheus is told about a judge."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Gauge

from penstock.gates.agreement import Standing
from penstock.monitoring.judge_report import Status
from penstock.serving.prices import to_dollars


class JudgeMetrics:
    """Gauges of what a recipe's judge has found so far; Prometheus adds whose it is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(f"penstock_judge_{name}", about, labels, registry=self.registry)

        self.good = gauge("good_ratio", "Share of judged answers that are good.", "version")
        self.good_low = gauge("good_ratio_low", "Lower end of its 95 % interval.", "version")
        self.good_high = gauge("good_ratio_high", "Upper end of its 95 % interval.", "version")
        self.answers = gauge("answers", "Judged answers that the share is of.", "version")
        self.no_verdict = gauge("answers_without_verdict", "The judge said nothing of use.")
        self.counts = gauge("counts", "1 while the judge agrees with people well enough.")
        self.kappa = gauge("kappa", "Agreement of judge and people beyond chance (Cohen's).")
        self.kappa_low = gauge("kappa_low", "Lower end of its interval.")
        self.kappa_high = gauge("kappa_high", "Upper end of its interval.")
        self.labels = gauge("labels", "Judged answers that people have scored, too.")
        self.alpha = gauge("raters_alpha", "Agreement of people (Krippendorff's).")
        self.questions = gauge("questions_today", "Questions asked since midnight UTC.")
        self.usd = gauge("usd_today", "US dollars spent since midnight UTC.")
        self.looked_at = gauge("last_look_timestamp_seconds", "When answers were judged last.")
        for one in (self.kappa, self.kappa_low, self.kappa_high, self.alpha):
            one.set(math.nan)  # before the first look nothing is known, and 0 would be a finding

    def show(self, status: Status, now_s: float) -> None:
        """Replace what is shown; a version that is no longer judged goes, what is unknown is NaN.

        Args:
            status: What is known.
            now_s: Unix seconds.
        """
        for one in (self.good, self.good_low, self.good_high, self.answers):
            one.clear()
        for version, good in status.quality.items():
            self.good.labels(version).set(_known(good.share))
            self.good_low.labels(version).set(good.low)
            self.good_high.labels(version).set(good.high)
            self.answers.labels(version).set(good.num)
        self.no_verdict.set(status.num_no_verdict)
        self.counts.set(status.calibration.standing is Standing.COUNTS)
        kappa = status.calibration.kappa
        self.kappa.set(_known(kappa.value))
        self.kappa_low.set(kappa.low)
        self.kappa_high.set(kappa.high)
        self.labels.set(kappa.num_items)
        self.alpha.set(_known(status.raters.alpha))
        self.questions.set(status.spent.questions)
        self.usd.set(float(to_dollars(status.spent.nanousd)))
        self.looked_at.set(now_s)


def _known(value: float | None) -> float:
    return math.nan if value is None else value
