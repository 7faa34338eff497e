"""`DecoderModel` is one definition for all supported architectures (`engine/model/families.py`).

The architectures differ in data only: biases, a norm on queries and keys, windows, ropes, soft
caps, norms on outputs, experts in place of a feed-forward. A rank of a tensor-parallel node has a
part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from engine.attention.backend import AttentionBackend, AttentionForm
from engine.batches.batch import Batch
from engine.batches.step import OnLayer
from engine.cache.kv_cache import KVCache
from engine.kernels.base import HeadNorms, HeadShape, Rotation
from engine.model.config import ModelConfig
from engine.model.feed_forward import Experts, FeedForward
from engine.model.linear import (
    Build,
    VocabularyEmbedding,
    VocabularyHead,
    column_parallel,
    kv_head_share,
    row_parallel,
    share,
)
from engine.model.rope import rotation


class Norm(nn.Module):
    """A root mean square norm. Weights that count from 1 have the 1 in them once they are loaded;
    they stay float32, because 1 + w in half precision would keep fewer bits of w."""

    def __init__(self, size: int, config: ModelConfig, build: Build) -> None:
        super().__init__()
        dtype = torch.float32 if config.has_precise_norms else build.dtype
        self.weight = build.parameter(size, dtype=dtype)
        self.eps, self.kernels = config.rms_norm_eps, build.kernels

    def forward(self, x: Tensor) -> Tensor:
        """Takes [tokens, hidden], or heads; returns the same shape."""
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (norm of the sum, the sum). It may write into `residual`."""
        return self.kernels.add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention. Each rank has some heads: outputs of q, k and v, and inputs of the output
    projection."""

    def __init__(self, config: ModelConfig, layer: int, build: Build) -> None:
        super().__init__()
        self.layer = layer
        self.heads = share(config.num_heads, build.parallel, "attention heads")
        self.kv_heads = kv_head_share(config.num_kv_heads, build.parallel)
        self.shape = HeadShape(len(self.heads), len(self.kv_heads), config.head_dim)
        self.form = AttentionForm(
            config.attention_scale, config.layers[layer].window, config.attention_softcap
        )
        name = f"model.layers.{layer}.self_attn"
        num_q, num_kv = (len(heads) * config.head_dim for heads in (self.heads, self.kv_heads))
        parts = [("q_proj", num_q), ("k_proj", num_kv), ("v_proj", num_kv)]
        if config.has_fused_qkv:
            parts = [("qkv_proj", num_q + 2 * num_kv)]
        parts = [(f"{name}.{part}", size) for part, size in parts]
        self.qkv = column_parallel(config.hidden_size, parts, config.qkv_bias, build)
        self.out = row_parallel(f"{name}.o_proj", num_q, config.hidden_size, config.o_bias, build)
        self.q_norm = Norm(config.head_dim, config, build) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config, build) if config.qk_norm else None
        self.kernels = build.kernels

    def forward(
        self,
        hidden: Tensor,
        rope: Rotation,
        batch: Batch,
        cache: KVCache,
        attention: AttentionBackend,
    ) -> Tensor:
        """Takes hidden [tokens, hidden] and writes the K and V of these tokens into `cache`.
        Returns the same shape, summed over all ranks."""
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        query = self.kernels.heads(
            self.qkv(hidden), self.shape, norms, rope, self.layer, cache, batch.write_slots
        )
        output = attention.forward(query, self.layer, cache, batch, self.form)
        return self.out(output.flatten(1))


class Layer(nn.Module):
    """Attention, feed-forward and their norms. The model's `forward` calls them, because it adds
    each output within the next norm. `rope` is an index of `DecoderModel.ropes`."""

    def __init__(self, config: ModelConfig, layer: int, rope: int, build: Build) -> None:
        super().__init__()
        norm = partial(Norm, config.hidden_size, config, build)
        has_output_norms = config.has_output_norms
        self.rope = rope
        self.attention_norm = norm()
        self.attention = Attention(config, layer, build)
        self.attention_out_norm = norm() if has_output_norms else nn.Identity()
        self.feed_forward_norm = norm()
        self.feed_forward: FeedForward | Experts
        if config.experts is not None and config.layers[layer].has_experts:
            self.feed_forward = Experts(config, config.experts, layer, build)
        else:
            self.feed_forward = FeedForward(config, layer, build)
        self.feed_forward_out_norm = norm() if has_output_norms else nn.Identity()


class DecoderModel(nn.Module):
    """The whole model, or one rank's part. It is made with parameters that are not filled yet."""

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.config, self.parallel, self.dtype = config, build.parallel, build.dtype
        # The scale has the precision of the weights, as in training.
        scale = torch.tensor(config.embedding_scale, dtype=build.dtype, device="cpu")
        self.embedding_scale = scale.item()
        self.embedding = VocabularyEmbedding(config.vocab_size, config.hidden_size, build)
        self.ropes = tuple(dict.fromkeys(layer.rope for layer in config.layers))
        self.layers: Sequence[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(config, i, self.ropes.index(layer.rope), build)
            for i, layer in enumerate(config.layers)
        )
        self.norm = Norm(config.hidden_size, config, build)
        tied = self.embedding if config.tie_word_embeddings else None
        self.head = VocabularyHead(config.vocab_size, config.hidden_size, tied, build)

    def forward(
        self,
        batch: Batch,
        cache: KVCache,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Returns logits [output rows, vocab] float32, else as `hidden`."""
        return self.logits(self.hidden(batch, cache, attention, on_layer))

    def hidden(
        self,
        batch: Batch,
        cache: KVCache,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Returns what `logits` takes, [output rows, hidden], and writes the K and V of every row
        into `cache`.

        `on_layer` is called as soon as those of a layer are written, before the feed-forward of
        that layer; on a CUDA device "written" means queued on the current stream. The feed-forward
        of the last layer is computed for the output rows alone.
        """
        rows = batch.output_rows
        residual = self.embedding(batch.input_ids).to(self.dtype)  # [tokens, hidden]
        if self.embedding_scale != 1.0:
            residual *= self.embedding_scale
        rotations = [rotation(rope, batch.positions, self.dtype) for rope in self.ropes]
        normed = self.layers[0].attention_norm(residual)
        for i, layer in enumerate(self.layers, start=1):
            output = layer.attention(normed, rotations[layer.rope], batch, cache, attention)
            if on_layer is not None:
                on_layer(i)
            if i == len(self.layers):
                output, residual = output[rows], residual[rows]
            output = layer.attention_out_norm(output)
            normed, residual = layer.feed_forward_norm.of_sum(output, residual)
            output = layer.feed_forward_out_norm(layer.feed_forward(normed))
            next_norm = self.norm if i == len(self.layers) else self.layers[i].attention_norm
            normed, residual = next_norm.of_sum(output, residual)
        return normed

    def logits(self, normed: Tensor) -> Tensor:
        """Returns [rows, vocab] float32 of what `hidden` returned, or of some of its rows."""
        logits = self.head(normed).float()
        cap = self.config.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
