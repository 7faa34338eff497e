"""`ModelRunner`: slices in, tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from engine.attention.backend import AttentionBackend
from engine.batches.batch import Batch, StepArrays
from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer, Step
from engine.cache.kv_cache import KVCache
from engine.compile_counts import CompileCounter
from engine.errors import DeviceBroken
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.rows import upload
from engine.sampling.grammars import Grammars
from engine.sampling.prompt_logprobs import PromptScores, score_prompts
from engine.sampling.sampler import Choices, sample
from engine.sampling.states import SequenceStates
from engine.steps.cuda_graphs import DecodeGraphs
from engine.steps.seen_shapes import SeenShapes
from protocol.layout import KVLayout


def no_tokenizer() -> str:
    """Stands for the tokenizer of a model directory that has none."""
    raise OSError("there is none")


@dataclass(eq=False)
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
    scores: PromptScores | None = None
    """What was measured for the slices with scored tokens; None if there are none."""
    packed_scores: Tensor | None = None
    """`scores.packed` on the host, once the step has `ended`."""
    grammars: Grammars | None = None
    """Says what becomes of the tokens that follow a grammar; None if none does."""
    _settled: list[Sampled | None] | None = None
    """What `sampled` returned."""

    @classmethod
    def of(
        cls,
        slices: Sequence[Slice],
        choices: Choices | None,
        device: torch.device,
        has_compiled: bool = False,
        grammars: Grammars | None = None,
        scores: PromptScores | None = None,
    ) -> DeviceStep:
        """Starts the transfer of what was chosen and measured, behind all work that was queued so
        far. The event behind that belongs to steps that sample nothing, too: they are not over when
        launched."""
        packed = _on_its_way(choices.packed) if choices is not None else None
        packed_scores = _on_its_way(scores.packed) if scores is not None else None
        ended = None
        if device.type == "cuda":
            ended = torch.cuda.Event()
            ended.record()
        return cls(slices, choices, packed, ended, has_compiled, scores, packed_scores, grammars)

    def sampled(self) -> list[Sampled | None]:
        """Waits for the device, even if nothing was sampled; see `Step.sampled`."""
        if self._settled is None:
            with _device_errors():
                if self.ended is not None:
                    self.ended.synchronize()
                self._settled = self._read()
        return self._settled

    def tokens_taken(self) -> Tensor:
        """Waits, and returns the tokens that the next step may follow, on the device: those of
        `choices`, but for what an answer's end has replaced."""
        assert self.choices is not None
        told = zip(self.slices, self.sampled(), strict=True)
        taken = [
            new.tokens[0] if new is not None and new.tokens else 0
            for part, new in told
            if part.sampling is not None
        ]
        return upload(np.array(taken, dtype=np.int64), self.choices.tokens.device)

    def _read(self) -> list[Sampled | None]:
        sampled: list[Sampled | None] = [None] * len(self.slices)
        if self.choices is not None and self.packed is not None:
            chosen = iter(self.choices.read(self.packed))
            sampled = [
                self._settle(part, next(chosen)) if part.sampling is not None else None
                for part in self.slices
            ]
        if self.scores is None or self.packed_scores is None:
            return sampled
        scores = iter(self.scores.read(self.packed_scores))
        return [
            replace(new or Sampled(()), prompt_logprobs=next(scores)) if s.scored else new
            for s, new in zip(self.slices, sampled, strict=True)
        ]

    def _settle(self, part: Slice, sampled: Sampled) -> Sampled:
        assert part.sampling is not None
        if self.grammars is None or not part.sampling.grammar or sampled.error:
            return sampled
        return self.grammars.settle(part, sampled)


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
        read_tokenizer: Callable[[], str] = no_tokenizer,
        library: CDLL | None = None,
        compiles: CompileCounter | None = None,
    ) -> None:
        """`read_tokenizer` returns the tokenizer.json, for grammars. `library` has the native
        kernels of a CPU, if they are used."""
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention
        self.fingerprint = fingerprint
        self.device = device
        self.states = SequenceStates(model.config.vocab_size, device)
        self.grammars = Grammars(read_tokenizer, model.config.vocab_size, library)
        self._graphs = graphs
        self._shapes = SeenShapes()
        self._compiles = compiles or CompileCounter()

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

    @property
    def num_compiles(self) -> int:
        """How many kernels and graphs this process has compiled, or loaded, so far."""
        return self._compiles.total

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
        self.grammars.end(sequence_id)

    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """Starts a step and waits for it. Returns the first sampled token of each slice, or None
        where none was wanted."""
        return [
            sampled.tokens[0] if sampled is not None and sampled.tokens else None
            for sampled in self.start(slices, on_layer).sampled()
        ]

    def _start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None, after: DeviceStep | None
    ) -> DeviceStep:
        arrays = StepArrays.of(slices, self.layout.page_size, after.slices if after else ())
        previous = after.choices.tokens if after is not None and after.choices is not None else None
        sampling = [s for s in slices if s.sampling is not None]
        grammar_step = self.grammars.begin(sampling)
        try:
            if after is not None and grammar_step is not None and grammar_step.follows_replaceable:
                grammar_step.wait()
                previous = after.tokens_taken()  # near an answer's end the device waits for it
            logits, scores, has_compiled = self._forward(arrays, previous, slices, on_layer)
        except BaseException:
            if grammar_step is not None:
                grammar_step.wait()
            raise
        choices = None
        if sampling:
            before: Sequence[Sampled | None] = ()
            if after is not None and grammar_step is not None and grammar_step.follows:
                grammar_step.wait()
                before = after.sampled()
            masks = grammar_step.finish(before) if grammar_step is not None else None
            seen = self.states.feed(sampling, arrays.sources[arrays.sample_rows], previous)
            choices = sample(logits, arrays.samplings, arrays.sample_positions, seen, masks)
        grammars = self.grammars if grammar_step is not None else None
        return DeviceStep.of(slices, choices, self.device, has_compiled, grammars, scores)

    def _forward(
        self,
        arrays: StepArrays,
        previous: Tensor | None,
        slices: Sequence[Slice],
        on_layer: OnLayer | None,
    ) -> tuple[Tensor, PromptScores | None, bool]:
        """Returns the logits, what is said of scored tokens, and whether something may have been
        compiled for them."""
        is_recorded = self._graphs is not None and self._graphs.takes(arrays, previous)
        # What libraries compile for a CPU takes them milliseconds, less than such a step.
        has_compiled = self.device.type == "cuda" and self._shapes.add(arrays, is_recorded)
        if self._graphs is None or not is_recorded:
            batch = Batch.of(arrays, self.device, previous)
            return *self._compute(batch, slices, on_layer), has_compiled
        logits = self._graphs.run(arrays, previous)  # then no slice has scored tokens
        if on_layer is not None:
            on_layer(self.config.num_layers)
        return logits, None, has_compiled

    def _compute(
        self, batch: Batch, slices: Sequence[Slice], on_layer: OnLayer | None
    ) -> tuple[Tensor, PromptScores | None]:
        """Returns the logits of the rows to sample for, and what is said of scored tokens."""
        if batch.scored_rows is None:
            return self.model(batch, self.kv_cache, self.attention, on_layer), None
        hidden = self.model.hidden(batch, self.kv_cache, self.attention, on_layer)
        num_sampled, logits_of = len(batch.sample_rows), self.model.logits
        scores = score_prompts(hidden[num_sampled:], slices, logits_of, self.config.vocab_size)
        return logits_of(hidden[:num_sampled]), scores


def _on_its_way(values: Tensor) -> Tensor:
    """Returns what `values` will be on the host, once the device has done all that it was given."""
    if values.device.type != "cuda":
        return values
    on_host = torch.empty_like(values, device="cpu", pin_memory=True)
    return on_host.copy_(values, non_blocking=True)


@contextmanager
def _device_errors() -> Iterator[None]:
    """Raises DeviceBroken in place of torch's error for a device that computes nothing more."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceBroken(str(error)) from error
