"""`ModelRunner`: slices in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.attention import AttentionBackend
from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.model import DecoderModel, OnLayer
from engine.model_config import ModelConfig
from engine.request import Sampled, Slice
from engine.sampler import Choices, sample
from protocol.layout import KVLayout


@dataclass(frozen=True)
class Step:
    """One step that was given to the device."""

    slices: Sequence[Slice]
    choices: Choices | None
    """For the slices with sampling; None if there are none."""

    def sampled(self) -> list[Sampled | None]:
        """What was sampled for each slice, None where nothing was wanted; waits for the device."""
        if self.choices is None:
            return [None] * len(self.slices)
        sampled = iter(self.choices.read(self.choices.packed.cpu()))
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
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention
        self.fingerprint = fingerprint
        self.device = device

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
        batch = Batch.build(slices, self.layout.page_size, self.device)
        logits = self.model(batch, self.kv_cache, self.attention, on_layer)
        if not batch.samplings:
            return Step(slices, None)
        last_tokens = batch.input_ids[batch.sample_rows]
        histories = [s.history for s in slices if s.sampling is not None]
        return Step(
            slices,
            sample(logits, batch.samplings, batch.sample_positions, histories, last_tokens),
        )

    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """`start`, and waits: the sampled token of each slice, None where none was wanted."""
        return [
            sampled.token if sampled is not None else None
            for sampled in self.start(slices, on_layer).sampled()
        ]
