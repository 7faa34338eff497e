"""Settings of quantisation with any value in any place are read, or refused with a sentence."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.quantisation import read_quantisation
from protocol.errors import UserError
from tests.support.quantised.quantization_configs import CASES

SUPPORTED = [case.config for case in CASES if case.expected == "supported"]
MODULES = ("model.layers.3.mlp.down_proj", "model.layers.0.mlp.experts.5.gate_proj", "lm_head")
scalars = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4)
values = st.recursive(
    scalars | st.sampled_from(["re:(", "-:[", "*", "Linear", 4, 8, "4", "group", "float"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every (container, key) within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


@settings(max_examples=300)
@given(config=st.sampled_from(SUPPORTED), data=st.data())
def test_no_value_is_a_crash(config: dict[str, Any], data: st.DataObject) -> None:
    config = copy.deepcopy(config)
    found = list(places(config))
    if found:
        container, key = data.draw(st.sampled_from(found))
        container[key] = data.draw(values)
    try:
        read = read_quantisation(config)
        for module in MODULES if read is not None else ():
            read.scheme_of(module)
    except UserError as error:
        assert str(error).startswith("the model ")
