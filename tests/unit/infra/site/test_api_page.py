"""The API reference names every operation of the OpenAPI document."""

from __future__ import annotations

from infra.site.api_page import api_page
from infra.site.openapi import openapi_document


def test_every_operation_parameter_and_body_is_told() -> None:
    document = openapi_document()
    page = api_page(document)
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, of_path in document["paths"].items()
        for method, operation in of_path.items()
    ]
    assert len(operations) > 30
    for name, operation in operations:
        assert f"`{name}`" in page
        for parameter in operation.get("parameters", []):
            assert f"| `{parameter['name']}` |" in page
    for name, schema in document["components"]["schemas"].items():
        assert f"### {name}\n" in page
        assert all(f"| `{key}` |" in page for key in schema["properties"])


def test_nothing_of_a_description_is_taken_for_html_or_a_column() -> None:
    schema = {"properties": {"stop": {"type": "string", "description": "<|end|> ends it"}}}
    document = {"paths": {}, "components": {"schemas": {"Body": schema}}}
    assert "&lt;\\|end\\|> ends it |" in api_page(document)
