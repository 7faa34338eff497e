"""The names that other servers give to what kvrelay measures too, so that dashboards, alerts and
endpoint pickers made for them work. Pure.

Nothing has a familiar name that does not mean exactly the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protocol.config import require
from protocol.telemetry.metric import Measures, Metric, Sample

FAMILIES = ("sglang", "vllm")
"""Whose names there are."""


@dataclass(frozen=True)
class FamiliarName:
    """Another name of a metric. Series that differ only in labels which it lacks are added up."""

    name: str
    source: Metric
    labels: dict[str, str] = field(default_factory=dict)
    """Which label of the source each of its labels is."""
    only: tuple[str, str] | None = None
    """A label of the source and the value that it must have."""

    @property
    def metric(self) -> Metric:
        """Returns the definition under this name."""
        return dataclasses.replace(self.source, name=self.name, labels=tuple(self.labels))

    def samples(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Returns those of `samples` that are the source's, under this name."""
        for sample in samples:
            if sample.name != self.source.name:
                continue
            values = dict(zip(self.source.labels, sample.labels, strict=True))
            if self.only is None or values[self.only[0]] == self.only[1]:
                labels = tuple(values[label] for label in self.labels.values())
                yield Sample(self.name, labels, sample.value)


Names = Mapping[str, Sequence[FamiliarName]]
"""The familiar names of a process's metrics, by whose they are."""


def require_families(families: Iterable[str]) -> None:
    """Raises ConfigError if a value of --metric-names is none of FAMILIES."""
    for family in families:
        require(
            family in FAMILIES, f"--metric-names has {family!r}; it takes {' and '.join(FAMILIES)}"
        )


def familiar(
    names: Names, families: Iterable[str], samples: list[Sample]
) -> tuple[list[Metric], list[Sample]]:
    """Returns the metrics and samples of `samples` under the names of these families."""
    wanted = [name for family in families for name in names[family]]
    measures = Measures()
    for name in wanted:
        for sample in name.samples(samples):
            measures.add(sample)
    return [name.metric for name in wanted], list(measures.samples())
