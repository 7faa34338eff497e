"""`PageForm`: how K and V are kept in pages. The model's dtype, its checkpoint and a flag decide it
together."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from engine.model.config import ModelConfig
from engine.weights.pages.kv_scales import static_kv_scales
from engine.weights.source import TensorSource
from protocol.layout import FP8, Scales


@dataclass(frozen=True, eq=False)
class PageForm:
    """The dtype of pages, and the scales of their numbers."""

    dtype: str
    scales: Scales = ""
    static_scales: Tensor | None = None
    """[layers, 2, kv_heads of the whole model] float32, if `scales` are static."""
    computed_in: str = ""
    """The dtype of the model, where that of the pages does not tell."""

    def scales_of(self, kv_heads: range) -> Tensor | None:
        """Returns the static scales of a rank's KV heads, [layers, 2, heads]; None without any."""
        if self.static_scales is None:
            return None
        return self.static_scales[:, :, kv_heads.start : kv_heads.stop].contiguous()

    @property
    def variant(self) -> str:
        """What pages are not to be shared across, and their layout does not say: all ranks of all
        nodes that may share them have equal texts. It is "" if the layout says all."""
        if self.dtype != FP8:
            return ""
        if self.static_scales is None:
            return f"FP8 pages of {self.computed_in}"
        digest = blake2b(self.static_scales.numpy().tobytes(), digest_size=8).hexdigest()
        return f"FP8 pages of {self.computed_in}, scales {digest}"


def page_form(
    kv_cache_dtype: str, dtype: torch.dtype, source: TensorSource | None, config: ModelConfig
) -> PageForm:
    """Turns --kv-cache-dtype into a form, for a model that is computed in `dtype`; `source` is None
    for dummy weights. Raises ModelDirectoryError if the scales in the checkpoint are unusable."""
    name = str(dtype).removeprefix("torch.")
    if kv_cache_dtype == "auto":
        return PageForm(name)
    static = None
    if source is not None:
        static = static_kv_scales(source, config.num_layers, config.num_kv_heads)
    return PageForm(FP8, "token" if static is None else "static", static, name)
