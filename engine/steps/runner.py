"""`ModelRunner`: slices in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.cache.kv_cache import KVCache
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel, OnLayer
from engine.sampling.sampler import Choices, sample
from engine.steps.batch import Batch, StepArrays
from engine.steps.cuda_graphs import DecodeGraphs
from engine.steps.sequence import Sampled, Slice
from protocol.layout import KVLayout


@dataclass(frozen=True)
class Step:
    """One step that was given to the device."""

    slices: Sequence[Slice]
    choices: Choices | None
    """For the slices with sampling; None if there are none."""
    packed: Tensor | None
    """`choices.packed` on the host, once `ready`."""
    ready: torch.cuda.Event | None
    """None: it is already."""

    @classmethod
    def of(cls, slices: Sequence[Slice], choices: Choices | None) -> Step:
        """Starts the transfer of what was chosen, behind all work that was queued so far."""
        if choices is None or choices.packed.device.type != "cuda":
            return cls(slices, choices, choices.packed if choices is not None else None, None)
        packed = torch.empty_like(choices.packed, device="cpu", pin_memory=True)
        packed.copy_(choices.packed, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return cls(slices, choices, packed, ready)

    def sampled(self) -> list[Sampled | None]:
        """What was sampled for each slice, None where nothing was wanted; waits for the device."""
        if self.choices is None or self.packed is None:
            return [None] * len(self.slices)
        if self.ready is not None:
            self.ready.synchronize()
        sampled = iter(self.choices.read(self.packed))
        return [next(sampled) if s.sampling is not None else None for s in self.slices]


class ModelRunner:
    """One model on one device with its KV pool. Not thread-safe."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        attention: AttentionBackend,
        fingerprint: str,
        device: torch.device,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention
        self.fingerprint = fingerprint
        self.device = device
        self._graphs = graphs

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def layout(self) -> KVLayout:
        return self.kv_cache.layout

    @property
    def runs_ahead(self) -> bool:
        """`start` returns before the device is done, so that the next step may be started before
        the tokens of this one are known."""
        return self.device.type == "cuda"

    @torch.inference_mode()
    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> Step:
        """Gives one step to the device. `after`: the step that `Slice.follows` refers to.

        `on_layer`: as `DecoderModel.forward` calls it.
        """
        arrays = StepArrays.of(slices, self.layout.page_size, after.slices if after else ())
        previous = after.choices.tokens if after is not None and after.choices is not None else None
        if self._graphs is not None and self._graphs.takes(arrays, previous):
            logits = self._graphs.run(arrays, previous)
            if on_layer is not None:
                on_layer(self.config.num_layers)
        else:
            batch = Batch.of(arrays, self.device, previous)
            logits = self.model(batch, self.kv_cache, self.attention, on_layer)
        if not arrays.samplings:
            return Step.of(slices, None)
        histories = [s.history for s in slices if s.sampling is not None]
        choices = sample(logits, arrays.samplings, arrays.sample_positions, histories)
        return Step.of(slices, choices)

    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """`start`, and waits: the sampled token of each slice, None where none was wanted."""
        return [
            sampled.token if sampled is not None else None
            for sampled in self.start(slices, on_layer).sampled()
        ]
