"""GET /metrics: what Prometheus scrapes of a coordinator."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response

from coordinator.http.documents.bodies import answers
from coordinator.http.scrapes.familiar_names import NAMES
from coordinator.http.scrapes.gauges import measured_now
from coordinator.http.scrapes.siblings import Siblings
from coordinator.metrics import table
from coordinator.service import Service
from protocol.telemetry.exposition import CONTENT_TYPE, exposition
from protocol.telemetry.familiar import familiar
from protocol.telemetry.metric import Measures, Sample

router = APIRouter(tags=["native"])

_OF_ALL = frozenset(metric.name for metric in table.OF_THE_CLUSTER)


class Scrapes:
    """Puts together what a scrape of this coordinator gets."""

    def __init__(self, service: Service) -> None:
        self._service = service
        config = service.config
        self.siblings = Siblings(service.worker, config.workers, self._told_to_siblings)
        self._common = {"model_name": config.served_model_name}

    async def text(self) -> bytes:
        """Returns the exposition: the sums over the workers behind this port."""
        measures = self._measures()
        for sample in await self.siblings.others():
            measures.add(sample)
        samples = list(measures.samples())
        metrics, named = familiar(NAMES, self._service.config.metric_names, samples)
        return exposition([*table.METRICS, *metrics], [*samples, *named], self._common)

    def _measures(self) -> Measures:
        measures = self._service.core.statistics.requests.measures
        measured_now(self._service, measures)
        copy = Measures()
        for sample in measures.samples():
            copy.add(sample)
        return copy

    def _told_to_siblings(self) -> Iterator[Sample]:
        """What every coordinator knows alike is told by one alone."""
        samples = self._measures().samples()
        return (sample for sample in samples if sample.name not in _OF_ALL)


@router.get(
    "/metrics",
    response_class=Response,
    response_model=None,
    responses=answers(None),
)
async def metrics(request: Request) -> Response:
    """Answers the metrics of this coordinator in Prometheus' text format; those of nodes are at
    their own health ports. No key is asked for."""
    scrapes: Scrapes = request.app.state.scrapes
    return Response(await scrapes.text(), media_type=CONTENT_TYPE)
