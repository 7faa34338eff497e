"""`EngineOptions`: the settings that decide how a model is computed."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.config import option, require
from protocol.layout import DTYPE_BYTES

DTYPES = ("auto", *DTYPE_BYTES)
KV_CACHE_DTYPES = ("auto", "fp8_e4m3")
ATTENTION_BACKENDS = ("auto", "flash", "varlen", "triton", "native", "torch")
LOAD_FORMATS = ("auto", "dummy")
QUANTIZATIONS = ("none", "fp8", "int8", "int4", "awq", "gptq", "compressed-tensors", "gguf")


@dataclass(frozen=True)
class EngineOptions:
    """The flags of a node that its engine reads; the configuration of a node inherits them."""

    dtype: str = option(
        "auto",
        "dtype of weights, and of KV pages but for --kv-cache-dtype; auto: the checkpoint's on a "
        "GPU, bfloat16 on a CPU that has AMX if the checkpoint is, else float32",
        DTYPES,
        synonyms={"half": "float16", "float": "float32"},
    )
    page_size: int = option(16, "tokens per KV page")
    kv_cache_dtype: str = option(
        "auto",
        "dtype of KV pages; auto: that of the weights; fp8_e4m3: a byte a number, with the "
        "checkpoint's scales, or scales per token and head where it has none",
        KV_CACHE_DTYPES,
        synonyms={"fp8": "fp8_e4m3"},
    )
    load_format: str = option(
        "auto",
        "auto: the model's weights; dummy: random ones, for benchmarks",
        LOAD_FORMATS,
        synonyms={"safetensors": "auto", "gguf": "auto"},
    )
    quantization: str = option(
        "none",
        "fp8, int8, int4: round the weights of a plain checkpoint while they are loaded, without "
        "calibration; awq, gptq, compressed-tensors, fp8, gguf: refuse checkpoints of other kinds",
        QUANTIZATIONS,
        synonyms={
            "awq_marlin": "awq",
            "gptq_marlin": "gptq",
            "compressed_tensors": "compressed-tensors",
        },
    )
    attention_backend: str = option(
        "auto",
        "how attention is computed; auto: the fastest that is here",
        ATTENTION_BACKENDS,
        synonyms={"fa3": "flash", "fa4": "flash", "torch_native": "torch"},
    )
    no_native_kernels: bool = option(
        False, "compute on a CPU with torch alone; else kernels are compiled at the first start"
    )
    cpu_int8_activations: bool = option(
        False,
        "on a CPU, round the inputs of packed weights of integers to eight bits, as llama.cpp "
        "does: several times as fast with many rows; all nodes or none",
    )
    compile_cache: str = option(
        "",
        "directory where compiled kernels are kept, best shared by the nodes of a host; empty: in "
        "the user's cache directory",
    )
    deterministic: bool = option(
        False, "logits depend neither on what is computed beside a request nor on cache hits"
    )
    context_length: int = option(0, "longest sequence that is served; 0: the model's own limit")
    max_running_requests: int = option(64, "requests computed side by side")

    def __post_init__(self) -> None:
        require(
            self.page_size > 0 and self.page_size & (self.page_size - 1) == 0,
            f"--page-size is {self.page_size}; it must be a power of two, as 16 or 64",
        )
        require(self.context_length >= 0, "--context-length must be 0 or more")
        require(self.max_running_requests > 0, "--max-running-requests must be at least 1")
        rivals = (
            ("--no-native-kernels", self.no_native_kernels),
            ("--deterministic", self.deterministic),
        )
        for flag, is_set in rivals:
            require(
                not (self.cpu_int8_activations and is_set),
                f"--cpu-int8-activations needs the native kernels, which {flag} leaves out; "
                "drop one of the two flags",
            )
