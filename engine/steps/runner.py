"""`ModelRunner`: slices in, tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.batches.batch import Batch, StepArrays
from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer, Step
from engine.cache.kv_cache import KVCache
from engine.errors import DeviceBroken
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.sampling.sampler import Choices, sample
from engine.sampling.states import SequenceStates
from engine.steps.cuda_graphs import DecodeGraphs
from engine.steps.seen_shapes import SeenShapes
from protocol.layout import KVLayout


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """A `Step` that torch computes."""

    slices: Sequence[Slice]
    choices: Choices | None
    """What is sampled for the slices with sampling; None if there are no such slices."""
    packed: Tensor | None
    """The memory of the host that has `choices.packed` once the step has `ended`."""
    ended: torch.cuda.Event | None
    """None if the step had ended when it was started, as on a CPU."""
    has_compiled: bool = False

    @classmethod
    def of(
        cls,
        slices: Sequence[Slice],
        choices: Choices | None,
        device: torch.device,
        has_compiled: bool = False,
    ) -> DeviceStep:
        """Starts the transfer of what was chosen to the host, behind all work that was queued so
        far. The event `ended` comes behind that; steps that sample nothing have one too, as they
        are not over when launched."""
        packed = choices.packed if choices is not None else None
        if device.type != "cuda":
            return cls(slices, choices, packed, None, has_compiled)
        if packed is not None:
            on_host = torch.empty_like(packed, device="cpu", pin_memory=True)
            packed = on_host.copy_(packed, non_blocking=True)
        ended = torch.cuda.Event()
        ended.record()
        return cls(slices, choices, packed, ended, has_compiled)

    def sampled(self) -> list[Sampled | None]:
        """Waits for the device, even if nothing was sampled; see `Step.sampled`."""
        with _device_errors():
            if self.ended is not None:
                self.ended.synchronize()
            if self.choices is None or self.packed is None:
                return [None] * len(self.slices)
            sampled = iter(self.choices.read(self.packed))
            return [next(sampled) if s.sampling is not None else None for s in self.slices]


class ModelRunner:
    """Computes steps of one model on one device. It has the KV pool and the states of sequences.
    Not thread-safe."""

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
        self.states = SequenceStates(model.config.vocab_size, device)
        self._graphs = graphs
        self._shapes = SeenShapes()

    @property
    def config(self) -> ModelConfig:
        """The config of the model."""
        return self.model.config

    @property
    def layout(self) -> KVLayout:
        """The layout of the pages in this rank's pool."""
        return self.kv_cache.layout

    @property
    def runs_ahead(self) -> bool:
        """True if `start` returns before the device is done, so that the next step may be started
        before the tokens of this one are known."""
        return self.device.type == "cuda"

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> DeviceStep:
        """Gives one step to the device, and new tokens to the states of its sequences.

        `after` is the step that `Slice.follows` refers to. `on_layer` is called as by
        `DecoderModel.forward`. A step that failed may be started again, in any parts. Raises
        DeviceBroken, and whatever a faulty request causes.
        """
        assert after is None or isinstance(after, DeviceStep), "another runner's step"
        with _device_errors(), torch.inference_mode():
            return self._start(slices, on_layer, after)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copies KV pages, behind the steps that were started and before those that will be. Raises
        DeviceBroken."""
        with _device_errors(), torch.inference_mode():
            self.kv_cache.copy(sources, destinations)

    def end_sequence(self, sequence_id: int) -> None:
        """Forgets the state of a sequence, if it has one. There must be no further slice of it."""
        self.states.end(sequence_id)

    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """Starts a step and waits for it. Returns the first sampled token of each slice, or None
        where none was wanted."""
        return [
            sampled.tokens[0] if sampled is not None else None
            for sampled in self.start(slices, on_layer).sampled()
        ]

    def _start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None, after: DeviceStep | None
    ) -> DeviceStep:
        arrays = StepArrays.of(slices, self.layout.page_size, after.slices if after else ())
        previous = after.choices.tokens if after is not None and after.choices is not None else None
        is_recorded = self._graphs is not None and self._graphs.takes(arrays, previous)
        # What libraries compile for a CPU takes them milliseconds, less than such a step.
        has_compiled = self.device.type == "cuda" and self._shapes.add(arrays, is_recorded)
        if self._graphs is not None and is_recorded:
            logits = self._graphs.run(arrays, previous)
            if on_layer is not None:
                on_layer(self.config.num_layers)
        else:
            batch = Batch.of(arrays, self.device, previous)
            logits = self.model(batch, self.kv_cache, self.attention, on_layer)
        choices = None
        if arrays.samplings:
            sampling = [s for s in slices if s.sampling is not None]
            seen = self.states.feed(sampling, arrays.sources[arrays.sample_rows], previous)
            choices = sample(logits, arrays.samplings, arrays.sample_positions, seen)
        return DeviceStep.of(slices, choices, self.device, has_compiled)


@contextmanager
def _device_errors() -> Iterator[None]:
    """Raises DeviceBroken in place of torch's error for a device that computes nothing more."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceBroken(str(error)) from error
