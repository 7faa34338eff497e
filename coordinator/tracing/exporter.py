"""Sends traces to a collector, by OTLP over HTTP, with OpenTelemetry's SDK."""

from __future__ import annotations

from typing import Any

from coordinator.tracing.trace import RequestTrace, TraceSpan
from protocol.config import ConfigError
from protocol.trust.versions import RELEASE

SERVICE = "kvrelay-coordinator"
MAX_QUEUED_SPANS = 8192
"""Spans that wait for the collector; more are dropped, and the SDK says so."""
SEND_EVERY_MS = 1000
TIMEOUT_S = 5


class TraceExporter:
    """Queues the spans of traces, which a thread of the SDK sends in batches."""

    def __init__(self, endpoint: str, coordinator: str) -> None:
        """`endpoint` is a collector's address, as http://collector:4318. Raises ConfigError if the
        packages of the extra `otel` are not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                "--otlp-endpoint needs OpenTelemetry's packages; install kvrelay[otel], or leave "
                "the flag out"
            ) from error
        self._resource = Resource.create(
            {
                "service.name": SERVICE,
                "service.version": RELEASE,
                "service.instance.id": coordinator,
            }
        )
        url = f"{endpoint.rstrip('/')}/v1/traces"
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S),
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=SEND_EVERY_MS,
        )

    def export(self, trace: RequestTrace) -> None:
        """Queues a trace. Returns at once."""
        for span in trace.spans:
            self._processor.on_end(self._readable(trace, span))

    def close(self) -> None:
        """Sends what is queued, and ends the thread."""
        self._processor.shutdown()

    def _readable(self, trace: RequestTrace, span: TraceSpan) -> Any:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
        from opentelemetry.trace.status import Status, StatusCode

        def context(span_id: str, is_remote: bool) -> SpanContext:
            return SpanContext(
                int(trace.trace_id, 16),
                int(span_id, 16),
                is_remote,
                TraceFlags(TraceFlags.SAMPLED),
                TraceState.from_header([trace.state]) if trace.state else TraceState(),
            )

        is_root = span is trace.spans[0]
        status = Status(StatusCode.ERROR, span.error) if span.error else Status()
        return ReadableSpan(
            name=span.name,
            context=context(span.span_id, is_remote=False),
            parent=context(span.parent_id, is_remote=is_root) if span.parent_id else None,
            resource=self._resource,
            attributes=dict(span.attributes),
            kind=SpanKind.SERVER if is_root else SpanKind.INTERNAL,
            instrumentation_scope=InstrumentationScope("kvrelay", RELEASE),
            status=status,
            start_time=span.start_ns,
            end_time=span.end_ns,
        )
