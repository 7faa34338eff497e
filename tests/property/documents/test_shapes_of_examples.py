"""The schema that is made of an example takes what looks like it, and nothing else."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.http.documents.shapes import Variations, shape_of

KEYS = st.sampled_from(["name", "pages", "nodes"])
EXAMPLES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(0.5, 0.75) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@given(st.dictionaries(KEYS, EXAMPLES, min_size=1), st.data())
def test_an_example_has_its_own_shape_and_lacks_it_without_a_key(
    example: dict[str, Any], data: st.DataObject
) -> None:
    schema = shape_of(example)
    assert fits(example, schema)
    key = data.draw(st.sampled_from(sorted(example)))
    less = {name: value for name, value in example.items() if name != key}
    assert not fits(less, schema)
    assert fits(less, shape_of(example, Variations(optional=(key,))))
    assert fits(example | {key: None}, shape_of(example, Variations(nullable=(key,))))
    assert fits(example | {key: object}, shape_of(example, Variations(of_several_types=(key,))))


@pytest.mark.parametrize("wrong", [{"pages": "1"}, {"pages": 1.5}, {"pages": None}, {}, [], 1])
def test_other_types_do_not_fit(wrong: Any) -> None:
    assert not fits(wrong, shape_of({"pages": 1}))


def test_objects_by_name_have_any_names_and_values_of_one_shape() -> None:
    schema = shape_of({"nodes": {"p0": {"pages": 1}}}, Variations(by_name=("nodes",)))
    assert fits({"nodes": {"d7": {"pages": 2}, "d8": {"pages": 3}}}, schema)
    assert not fits({"nodes": {"d7": {}}}, schema)
