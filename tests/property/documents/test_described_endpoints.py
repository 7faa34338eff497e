"""Whatever the endpoints of the OpenAPI document are asked, they answer as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.coordinator.answering_server import AnsweringServer, answering_server
from tests.support.coordinator.owners import Server

TOKEN = "operators"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
DEADLINE_S = 10.0
"""An answer that takes longer hangs."""
NUM_OPERATIONS = 42
EXAMPLES_SHARE = 5
"""Most operations are asked so much less often than other properties are tried: there are many."""
NAMES = st.sampled_from(["d0", "tiny", "my-request"])
"""Of what there is; a made-up name finds nothing."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnsweringServer]:
    redis = Server(tmp_path_factory.mktemp("redis"))
    with answering_server(redis_url=redis.url, admin_token=TOKEN) as one:
        yield one
    redis.stop()


@pytest.fixture(scope="module")
def document(server: AnsweringServer) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def operations_of(document: BaseSchema) -> list[APIOperation]:
    return [found.ok() for found in document.get_all_operations()]


def example_of(operation: APIOperation) -> dict[str, Any] | None:
    """The body that the document shows."""
    described = operation.definition.raw.get("requestBody", {}).get("content", {})
    example: dict[str, Any] | None = described.get("application/json", {}).get("example")
    return example


@st.composite
def cases(draw: st.DrawFn, operation: APIOperation) -> Case:
    """What the schema allows, or the example with some keys as the schema allows them: else most
    bodies would be refused for their first keys."""
    case = draw(operation.as_strategy())
    example = example_of(operation)
    if example is not None and draw(st.booleans()):
        made = case.body if isinstance(case.body, dict) else {}
        keys = draw(st.sets(st.sampled_from(sorted(made) or [""]), max_size=3))
        case.body = example | {key: made[key] for key in keys if key in made}
    for name in case.path_parameters or {}:
        if draw(st.booleans()):
            case.path_parameters[name] = draw(NAMES)
    return case


def ask(server: AnsweringServer, case: Case) -> int:
    """Calls, checks what comes, and returns its status."""
    response = case.call(headers=HEADERS, timeout=DEADLINE_S)
    if case.operation.path == "/pause_generation":
        server.ask("/continue_generation", {}, HEADERS).raise_for_status()
    case.validate_response(response, checks=CHECKS)
    return response.status_code


def statuses_of(server: AnsweringServer, operation: APIOperation) -> set[int]:
    """Asks one operation many things, and returns what statuses came."""
    statuses = set()

    @settings(
        max_examples=max(1, settings().max_examples // EXAMPLES_SHARE),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(operation))
    def answers_as_described(case: Case) -> None:
        statuses.add(ask(server, case))

    answers_as_described()
    return statuses


def test_every_endpoint_answers_as_the_document_says(
    server: AnsweringServer, document: BaseSchema
) -> None:
    statuses = {one.label: statuses_of(server, one) for one in operations_of(document)}
    assert len(statuses) >= NUM_OPERATIONS
    never = [label for label, some in statuses.items() if 200 not in some]
    assert never == ["GET /admin/requests/{rid}"], "what is asked is too wild to be answered"


def test_the_examples_of_the_document_are_answered_as_it_says(
    server: AnsweringServer, document: BaseSchema
) -> None:
    asked = [one for one in operations_of(document) if example_of(one) is not None]
    assert len(asked) > 12
    for operation in asked:
        case = operation.Case(body=example_of(operation), media_type="application/json")
        assert ask(server, case) in (200, 404), operation.label
