"""Documents that were drawn at random, under the masks of their schema, are valid."""

from __future__ import annotations

import json

import pytest

from coordinator.grammars.error import GrammarError
from tests.support.models.grammars import compiler, draw
from tests.support.models.json_schemas import UNSUPPORTED, is_valid, schemas_by_group

MAX_NEW_TOKENS = 300
GROUPS = schemas_by_group()


def check(group: str, seeds: range, most: int | None = None) -> None:
    """Draws a document for each seed and each of the first schemas that are supported."""
    num_supported = 0
    for schema in GROUPS[group]:
        try:
            grammar = compiler().compile_now("json_schema", json.dumps(schema))
        except GrammarError:
            continue  # counted by the test of what is not supported
        num_supported += 1
        for seed in seeds:
            answer = draw(grammar, MAX_NEW_TOKENS, seed)
            assert answer.has_ended, (schema, answer.text)
            assert is_valid(schema, answer.text), (schema, answer.text)
        if num_supported == most:
            return
    assert num_supported + UNSUPPORTED.get(group, 0) == len(GROUPS[group])


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_documents_of_a_few_schemas_are_valid(group: str) -> None:
    check(group, range(2), most=1)


@pytest.mark.verify
@pytest.mark.parametrize("group", sorted(GROUPS))
def test_documents_of_all_schemas_are_valid(group: str) -> None:
    check(group, range(5))


def test_what_is_not_supported_is_refused_and_listed() -> None:
    refused: dict[str, int] = {}
    for group, schemas in GROUPS.items():
        for schema in schemas:
            try:
                compiler().compile_now("json_schema", json.dumps(schema))
            except GrammarError as error:
                refused[group] = refused.get(group, 0) + 1
                assert str(error).startswith("json_schema: ")
    assert refused == UNSUPPORTED
    assert sum(map(len, GROUPS.values())) >= 300
