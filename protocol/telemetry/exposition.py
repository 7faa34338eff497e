"""Writes measures in Prometheus' text format, with `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from protocol.telemetry.metric import Histogram, Metric, Sample

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def exposition(
    metrics: Iterable[Metric],
    samples: Iterable[Sample],
    common: Mapping[str, str],
    pid: int | None = None,
) -> bytes:
    """Returns the text of all `metrics` with the values in `samples`, and of a process (memory, CPU
    time, open files): that with this `pid`, or this one. `common` are labels of every series, with
    their values.

    A metric without a sample has its HELP and TYPE lines; so has a counter without labels a 0.
    """
    registry = CollectorRegistry()
    registry.register(_Measured(list(metrics), list(samples), common))
    ProcessCollector(pid=lambda: pid or "self", registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry)


class _Measured(Collector):
    """Gives the values that were measured to the library that writes them."""

    def __init__(
        self, metrics: list[Metric], samples: list[Sample], common: Mapping[str, str]
    ) -> None:
        self._metrics = metrics
        self._common = common
        self._samples: dict[str, list[Sample]] = {}
        for sample in samples:
            self._samples.setdefault(sample.name, []).append(sample)

    def collect(self) -> Iterator[Family]:
        for metric in self._metrics:
            samples = self._samples.get(metric.name, [])
            if not samples and not metric.labels:
                nothing = Histogram.empty(metric.bounds) if metric.bounds else 0
                samples = [Sample(metric.name, (), nothing)]
            yield self._family(metric, samples)

    def _family(self, metric: Metric, samples: Iterable[Sample]) -> Family:
        names = [*self._common, *metric.labels]
        labelled = [([*self._common.values(), *sample.labels], sample.value) for sample in samples]
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
            for labels, value in labelled:
                assert isinstance(value, Histogram)
                histogram.add_metric(labels, _buckets(metric.bounds, value), value.total)
            return histogram
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=names)
        for labels, value in labelled:
            assert not isinstance(value, Histogram)
            family.add_metric(labels, value)
        return family


def _buckets(bounds: tuple[float, ...], histogram: Histogram) -> list[tuple[str, float]]:
    """Returns (bound, how many observations are at most that) of each bucket."""
    names = [*map(_bound_name, bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(histogram.counts)), strict=True))


def _bound_name(bound: float) -> str:
    return repr(float(bound))
