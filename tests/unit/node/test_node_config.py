"""A node's configuration is handed to its engine as it is, and refuses what neither can use."""

from __future__ import annotations

import pytest

from engine.options import EngineOptions
from node.config import NodeConfig
from protocol.config import ConfigError, resolve


def test_the_engine_is_given_the_very_flags_of_the_node() -> None:
    flags = {"dtype": "float16", "page_size": "64", "max_running_requests": "7"}
    config = resolve(NodeConfig, flags, {"KVRELAY_DETERMINISTIC": "true"})
    assert isinstance(config, EngineOptions)
    assert (config.dtype, config.page_size, config.deterministic) == ("float16", 64, True)
    assert config.max_running_requests == 7


def test_each_flag_is_defined_once() -> None:
    assert not EngineOptions.__annotations__.keys() & NodeConfig.__annotations__.keys()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("page_size", "17", "power of two"),
        ("page_size", "0", "power of two"),
        ("context_length", "-1", "0 or more"),
        ("max_running_requests", "0", "at least 1"),
        ("max_itl_ms", "-1", "0 or more"),
        ("dtype", "int8", "bfloat16"),
        ("cpu_threads", "0", "at least 1"),
        ("lease_s", "0", "more than 0 seconds"),
        ("mem_fraction_static", "1", "between 0 and 1"),
        ("control_port", "-1", "between 0 and 65535"),
        ("data_port", "65536", "between 0 and 65535"),
        ("health_port", "99999", "between 0 and 65535"),
        ("metric_names", "nobody", "sglang"),
        ("name", "a\nb", "must be printable"),
        ("context_length", str(1 << 60), "a whole number of at most"),
        ("context_length", "-" + "9" * 30, "a whole number of at most"),
        ("stall_s", "inf", "a number of at most"),
        ("stall_s", "nan", "a number of at most"),
        ("stall_s", "1e10", "a number of at most"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_flag(name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}.* {says}"):
        resolve(NodeConfig, {name: text}, {})
