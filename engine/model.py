"""`DecoderModel`: one definition for Llama 2/3, Mistral, Qwen2 and Qwen3.

The families differ in data only: biases, a norm on queries and keys, the attention window, rope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import AttentionBackend, AttentionForm
from engine.batch import Batch
from engine.kv_cache import KVCache
from engine.model_config import ModelConfig
from engine.rope import cos_sin, inverse_frequencies, rotate

OnLayer = Callable[[int], None]
"""Takes how many layers, from the first on, have their K and V in the pool."""


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.sizes = [q_size, kv_size, kv_size]
        self.form = AttentionForm(config.head_dim**-0.5, config.sliding_window)
        self.qkv = nn.Linear(config.hidden_size, sum(self.sizes), bias=config.qkv_bias)
        self.out = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None

    def forward(
        self,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        batch: Batch,
        cache: KVCache,
        attention: AttentionBackend,
    ) -> Tensor:
        heads = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))
        query_key, value = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), 1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = query_key.split((self.num_heads, self.num_kv_heads), dim=1)
            query = F.rms_norm(query, (self.head_dim,), self.q_norm, self.eps)
            key = F.rms_norm(key, (self.head_dim,), self.k_norm, self.eps)
            query_key = torch.cat((query, key), dim=1)
        query_key = rotate(query_key, *rope)  # [tokens, heads + kv_heads, head_dim]
        query, key = query_key.split((self.num_heads, self.num_kv_heads), dim=1)
        cache.write(self.layer, key, value, batch.write_slots)
        output = attention.forward(query, self.layer, cache, batch, self.form)
        return self.out(output.flatten(1))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(
            config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias
        )
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)


class DecoderModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers: Iterable[Layer] = nn.ModuleList(  # type: ignore[assignment]
            Layer(config, i) for i in range(config.num_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        batch: Batch,
        cache: KVCache,
        attention: AttentionBackend,
        on_layer: OnLayer | None = None,
    ) -> Tensor:
        """Logits [sampled rows, vocab] float32; writes the K and V of every row into `cache`.

        `on_layer` is called as soon as a layer's are written (on a CUDA device: queued on the
        current stream), before that layer's feed-forward.
        """
        hidden = self.embedding(batch.input_ids)  # [tokens, hidden]
        frequencies = inverse_frequencies(self.config, hidden.device)
        rope = cos_sin(frequencies, batch.positions, hidden.dtype)
        for num_layers, layer in enumerate(self.layers, start=1):
            normed = layer.attention_norm(hidden)
            hidden += layer.attention(normed, rope, batch, cache, attention)
            if on_layer is not None:
                on_layer(num_layers)
            hidden += layer.feed_forward(layer.feed_forward_norm(hidden))
        return self.head(self.norm(hidden[batch.sample_rows])).float()
