"""One page for the metrics of several processes, each series labelled with its process.

Sums are Prometheus' work: a counter that starts again with its process is then seen as
one that was reset, which a sum made here would hide. Exemplars are kept.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

_ACCEPT = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TIMEOUT_S = 2.0
LABEL = "worker"


class MergedMetrics:
    """A registry that asks the processes when it is asked.

    Args:
        urls: Process -> where its metrics are, at this moment.
    """

    def __init__(self, urls: Callable[[], Mapping[str, str]]) -> None:
        self.registry = CollectorRegistry()
        self._urls = urls
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All processes' metrics; one that does not answer is left out."""
        urls = self._urls()
        if not urls:
            return
        with ThreadPoolExecutor(len(urls)) as pool:
            pages = list(pool.map(_page, urls.values()))
        merged: dict[str, Metric] = {}
        for process, page in zip(urls, pages, strict=True):
            for family in _families(page):
                kept = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, LABEL: process}
                    kept.add_sample(
                        sample.name, labels, sample.value, sample.timestamp, sample.exemplar
                    )
        yield from merged.values()

    def describe(self) -> list[Metric]:
        """Nothing is known before the processes are asked."""
        return []


def _families(page: str | None) -> Iterator[Metric]:
    if page:
        # The parser has no annotations.
        yield from text_string_to_metric_families(page)  # type: ignore[no-untyped-call]


def _page(url: str) -> str | None:
    asked = urllib.request.Request(url, headers={"Accept": _ACCEPT})  # noqa: S310  # our own
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return str(answer.read().decode())
    except OSError:
        return None
