"""Products whose rows are padded to few sizes are those of the rows alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels.few_sizes_kernels import FewSizesKernels


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


@given(num_rows=st.integers(0, 1200), has_bias=st.booleans())
def test_padding_changes_no_result(num_rows: int, has_bias: bool) -> None:
    x, weight = random_tensor(num_rows, 32), random_tensor(24, 32, seed=1)
    bias = random_tensor(24, seed=2) if has_bias else None
    output = FewSizesKernels().linear(x, weight, bias)
    assert output.is_contiguous()
    torch.testing.assert_close(output, F.linear(x, weight, bias), atol=0.02, rtol=0.02)
