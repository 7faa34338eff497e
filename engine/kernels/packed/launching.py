"""What launches of all packed kernels have in common: their options, and the sum over splits."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from engine.dependent_launch import OPTION
from engine.kernels.packed.plans import ProductPlan, num_row_tiles, power_of_two
from engine.kernels.packed.tiles import add_splits_kernel

SUMS_OF_A_PROGRAM = 1024


class ProductLaunch:
    """One product [rows, in] by a weight of `num_out` outputs, or of as many for each group of
    rows, cut by a plan."""

    def __init__(
        self,
        x: Tensor,
        num_out: int,
        bias: Tensor | None,
        ends: Tensor | None,
        dtype: torch.dtype,
        plan: ProductPlan,
        options: dict[str, Any],
    ) -> None:
        self._plan, self._options, self._bias = plan, options, bias
        self.num_rows, self.num_out = len(x), num_out
        self.output = x.new_empty(self.num_rows, num_out, dtype=dtype)
        self._partial = self.output
        if plan.splits > 1:
            shape = (plan.splits, self.num_rows, num_out)
            self._partial = x.new_empty(shape, dtype=torch.float32)
        self.num_groups = None if ends is None else len(ends)
        tiles = num_row_tiles(self.num_rows, plan.rows, self.num_groups)
        self.grid = (triton.cdiv(num_out, plan.outputs), tiles, plan.splits)
        self.pointers = {
            "bias": self.output if bias is None else bias,
            "output": self.output,
            "partial": self._partial,
            "ends": self.output if ends is None else ends,
        }
        self.constants = {
            "HAS_BIAS": bias is not None,
            "IS_GROUPED": ends is not None,
            "GROUPS_BLOCK": power_of_two(self.num_groups or 1),
            "ROWS": plan.rows,
            "OUTPUTS": plan.outputs,
            "SPLITS": plan.splits,
            "num_warps": plan.num_warps,
            "num_stages": plan.num_stages,
            **options,
        }

    def result(self) -> Tensor:
        """Returns the product [rows, out], behind the kernel that was launched."""
        if self._plan.splits == 1:
            return self.output
        num_sums = self.output.numel()
        add_splits_kernel[(triton.cdiv(num_sums, SUMS_OF_A_PROGRAM),)](
            self._partial,
            self.pointers["bias"],
            self.output,
            num_sums,
            self.num_out,
            SPLITS=self._plan.splits,
            HAS_BIAS=self._bias is not None,
            BLOCK=SUMS_OF_A_PROGRAM,
            num_warps=4,
            **self._options,
        )
        return self.output


def launch_options(is_dependent: bool) -> dict[str, Any]:
    """Returns the options of every kernel; `engine/dependent_launch.py` says what `is_dependent`
    means."""
    options: dict[str, Any] = {"IS_DEPENDENT": is_dependent}
    if is_dependent:
        options[OPTION] = True
    return options
