"""What a coordinator measures of played requests, and the traces that it makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import AnswerStarted, Instruction, Send
from coordinator.metrics import table
from coordinator.timelines.arrival import Arrival
from coordinator.timelines.trace_context import TraceContext
from coordinator.tracing.exporter import TraceExporter
from coordinator.tracing.kept_traces import KeptTraces
from coordinator.tracing.trace import trace_of
from protocol.ids import Attempt, Node
from protocol.messages import Failed, Generate, TokenOut, TokensOut
from protocol.sampling import Sampling
from protocol.telemetry.metric import Histogram, Metric
from protocol.timelines.node_spans import NodeSpan, NodeTimes
from tests.support.coordinator.cores import core_of
from tests.support.processes.collectors import collector

D0, P0 = Node("d0", 1), Node("p0", 1)
CLIENT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "a=1")
ARRIVAL = Arrival("http-1", 1.0, 1.001, path="/v1/chat/completions", trace=CLIENT)
ASKER = NodeTimes((NodeSpan("admission", 0.001), NodeSpan("handover", 0.012)))
PREFILL = NodeTimes((NodeSpan("step_wait", 0.002), NodeSpan("compute", 0.008, 20)))
JOINED = NodeTimes((*ASKER.spans, NodeSpan("transfer", 0.003)))


def submit(core: CoordinatorCore, arrival: Arrival = ARRIVAL) -> tuple[Answer, Attempt]:
    request = Request(list(range(1, 21)), Sampling(seed=7), 8, rid="mine", arrival=arrival)
    started, *instructions = core.submit(request, 1.003)
    assert isinstance(started, AnswerStarted)
    return started.answer, attempt_in(instructions)


def attempt_in(instructions: list[Instruction]) -> Attempt:
    messages = [one.message for one in instructions if isinstance(one, Send)]
    (generate,) = [message for message in messages if isinstance(message, Generate)]
    return generate.attempt


def disaggregated(core: CoordinatorCore, arrival: Arrival = ARRIVAL) -> Answer:
    """Plays a request whose pages come 3 ms after its first token, and two further tokens."""
    answer, attempt = submit(core, arrival)
    first = TokenOut(attempt, 0, [5], times=ASKER, prefill_times=PREFILL)
    core.handle(TokensOut([first], P0), 1.020)
    joined = TokenOut(attempt, 0, [5], times=JOINED, prefill_times=PREFILL)
    core.handle(TokensOut([joined], D0), 1.024)
    core.handle(TokensOut([TokenOut(attempt, 1, [6])], D0), 1.030)
    core.handle(TokensOut([TokenOut(attempt, 2, [7, 8], "length")], D0), 1.050)
    return answer


def histogram(core: CoordinatorCore, metric: Metric, *labels: str) -> Histogram:
    return core.statistics.requests.measures.histogram(metric, *labels)


def counted(core: CoordinatorCore, metric: Metric, *labels: str) -> float:
    samples = core.statistics.requests.measures.samples()
    found = [one.value for one in samples if (one.name, one.labels) == (metric.name, labels)]
    assert all(isinstance(value, int | float) for value in found)
    return sum(value for value in found if not isinstance(value, Histogram))


def test_the_stages_of_a_disaggregated_request_are_measured() -> None:
    core = core_of("p0", "d0")
    disaggregated(core)
    assert counted(core, table.REQUESTS, "length") == 1
    for metric, seconds in {
        table.QUEUE: 0.0,
        table.PREFILL: 0.017,
        table.TRANSFER_EXPOSED: 0.003,
        table.FIRST_STEP: 0.007,
    }.items():
        measured = histogram(core, metric)
        assert sum(measured.counts) == 1, metric.name
        assert measured.total == pytest.approx(seconds), metric.name
    assert histogram(core, table.FIRST_TOKEN, "remote").total == pytest.approx(0.020)
    gaps = histogram(core, table.TOKEN_GAP)
    assert sum(gaps.counts) == 3 and gaps.total == pytest.approx(0.030)
    assert counted(core, table.GENERATION_TOKENS) == 4
    assert counted(core, table.ROUTES, "remote") == 1
    assert sum(histogram(core, table.FORECAST_ERROR).counts) == 1


def test_a_request_that_goes_on_elsewhere_is_counted_as_resumed() -> None:
    core = core_of("p0", "d0", "d1")
    answer, attempt = submit(core)
    core.handle(TokensOut([TokenOut(attempt, 0, [5])], P0), 1.020)
    again = attempt_in(core.handle(Failed(attempt, "the link broke", "node", P0), 1.100))
    assert again.number == 2
    assert counted(core, table.ATTEMPTS_LOST, "failed") == 1
    assert counted(core, table.RESUMED) == 1
    core.cancel(answer.request_id, 1.2)
    assert counted(core, table.REQUESTS, "client_left") == 1
    assert sum(histogram(core, table.FORECAST_ERROR).counts) == 0, "of two attempts"


def test_a_trace_has_the_clients_span_as_parent_and_no_gaps() -> None:
    core = core_of("p0", "d0")
    answer = disaggregated(core)
    trace = trace_of(answer, "tiny", 1.06, 10_000_000_000)
    root, *inner = trace.spans
    assert (trace.trace_id, root.parent_id, trace.state) == (
        CLIENT.trace_id,
        CLIENT.parent_id,
        "a=1",
    )
    assert root.name == "chat tiny" and root.start_ns == 10_000_000_000 - 60_000_000
    assert root.attributes["gen_ai.usage.output_tokens"] == 4
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    (attempt,) = [span for span in inner if span.name == "kvrelay.attempt"]
    children = [span for span in inner if span.parent_id == attempt.span_id]
    assert {"kvrelay.compute", "kvrelay.transfer", "kvrelay.decode"} <= {s.name for s in children}
    assert [one.end_ns for one in children[:-1]] == [one.start_ns for one in children[1:]]
    assert (children[0].start_ns, children[-1].end_ns) == (attempt.start_ns, attempt.end_ns)
    assert len({span.span_id for span in trace.spans}) == len(trace.spans)


def test_a_request_without_a_trace_begins_one_that_its_id_names() -> None:
    core = core_of("p0", "d0")
    answer = disaggregated(core, replace(ARRIVAL, trace=None))
    trace = trace_of(answer, "tiny", 1.06, 10_000_000_000)
    assert trace.trace_id == answer.request_id and trace.spans[0].parent_id == ""


def test_slow_and_failed_requests_are_kept_and_clients_are_obeyed() -> None:
    core = core_of("p0", "d0")
    answer = disaggregated(core)
    rare, slow = KeptTraces(share=0.0, slow_s=9.0), KeptTraces(share=0.0, slow_s=0.01)
    assert rare.keeps(answer), "its client samples it"
    answer.request = replace(answer.request, arrival=replace(ARRIVAL, trace=None))
    assert not rare.keeps(answer) and slow.keeps(answer)
    assert KeptTraces(share=1.0, slow_s=9.0).keeps(answer)
    unsampled = replace(CLIENT, is_sampled=False)
    answer.request = replace(answer.request, arrival=replace(ARRIVAL, trace=unsampled))
    assert not KeptTraces(share=1.0, slow_s=9.0).keeps(answer) and slow.keeps(answer)
    answer.num_attempts = 2
    assert rare.keeps(answer)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "x" * 10_000,
    ],
)
def test_a_wrong_traceparent_is_as_none(header: str) -> None:
    assert TraceContext.parse(header) is None


def test_a_traceparent_of_a_later_version_is_read() -> None:
    later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more"
    context = TraceContext.parse(later, "x" * 9_000)
    assert context == replace(CLIENT, is_sampled=False, state="")


def test_traces_reach_a_collector() -> None:
    core = core_of("p0", "d0")
    with collector() as (url, bodies):
        exporter = TraceExporter(url, "tcp://127.0.0.1:1")
        exporter.export(trace_of(disaggregated(core), "tiny", 1.06, 10_000_000_000))
        exporter.close()
    (body,) = bodies
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {CLIENT.trace_id}
    (root,) = [span for span in spans if span.parent_span_id.hex() == CLIENT.parent_id]
    assert root.name == "chat tiny" and root.kind == root.SPAN_KIND_SERVER
    assert any(one.key == "service.name" for one in resource.resource.attributes)
