"""What Prometheus is told about drift."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from penstock.monitoring.drift import Status


class DriftMetrics:
    """Gauges of the newest windows of one recipe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(
                f"penstock_drift_{name}", about, ["recipe", *labels], registry=self.registry
            )

        self.statistic = gauge("statistic", "Evidence that windows are no longer alike.")
        self.threshold = gauge("threshold", "Evidence that raises an alarm.")
        self.signal = gauge("signal_statistic", "The same, of one signal.", "signal")
        self.p = gauge("window_p", "P-values of the last window.", "column", "against", "test")
        self.windows = gauge("windows", "Windows since the version serves.")
        self.alarms = gauge("alarms", "Alarms since the version serves.")
        self.ended_at = gauge("last_window_timestamp_seconds", "When the last window ended.")
        self.checked_at = gauge("last_check_timestamp_seconds", "When it was looked last.")

    def show(self, status: Status, now_s: float) -> None:
        """Replace what is shown; what a new version's stream lacks goes."""
        self.signal.clear()
        self.p.clear()
        recipe = status.recipe
        judged = [one for one in status.windows if one.moment is not None]
        last = judged[-1].moment if judged else None
        self.statistic.labels(recipe).set(0.0 if last is None else last.statistic)
        self.threshold.labels(recipe).set(status.threshold)
        self.windows.labels(recipe).set(len(status.windows))
        self.alarms.labels(recipe).set(len(status.alarms))
        self.checked_at.labels(recipe).set(now_s)
        if status.windows:
            self.ended_at.labels(recipe).set(status.windows[-1].record.end_ms / 1000)
        if last is None:
            return
        for name, value in last.by_signal.items():
            self.signal.labels(recipe, name).set(value)
        for column, compared in judged[-1].record.found["columns"].items():
            for against in ("training", "since_promotion"):
                for test in ("kernel", "classifier"):
                    p = (compared.get(against) or {}).get(f"{test}_p")
                    if p is not None:
                        self.p.labels(recipe, column, against, test).set(p)
