"""The layers of experts: as many weights as there are experts, each multiplied by the rows of its
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from engine.model.linear import Build, Weight
from engine.model.linear_form import LinearForm
from engine.model.split import part


class GroupedLinear(Weight):
    """A weight [experts, out, in]. It may hold the outputs of `num_parts` projections of each
    expert, one after the other."""

    def __init__(
        self,
        count: int,
        num_in: int,
        num_out: int,
        form: LinearForm,
        build: Build,
        num_parts: int = 1,
    ) -> None:
        super().__init__(num_in, num_out, form, build, count)
        self.num_parts = num_parts

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Takes rows [rows, in], sorted by expert, and where those of each expert end; returns
        [rows, out]."""
        return self.form.apply_grouped(x, self._tensors, ends, self.kernels)


class GroupedRuns(nn.Module):
    """Projections of the same rows, of which only neighbours of equal form are one layer."""

    def __init__(self, runs: Sequence[GroupedLinear]) -> None:
        super().__init__()
        self.runs: Sequence[GroupedLinear] = nn.ModuleList(runs)  # type: ignore[assignment]

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Takes what a `GroupedLinear` takes; returns the outputs of all projections."""
        return torch.cat([run(x, ends) for run in self.runs], dim=-1)


class GroupedRowParallel(GroupedLinear):
    """Experts of which each rank has some of the inputs: the ranks' outputs are summed."""

    def of_all_ranks(self, output: Tensor) -> Tensor:
        """Makes the output of all ranks of this rank's [tokens, out]; it may have been summed over
        the experts of a token."""
        return self.parallel.all_reduce(output)


class GroupedGathering(GroupedLinear):
    """Experts in place of row-parallel ones whose form cannot be cut. Each rank has some outputs,
    and all inputs are gathered for it."""

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Takes the inputs that this rank has, [rows, in / ranks]; returns [rows, out / ranks]."""
        return super().forward(self.parallel.all_gather(x), ends)

    def of_all_ranks(self, output: Tensor) -> Tensor:
        """Makes the output of all ranks of this rank's [tokens, out / ranks]."""
        return self.parallel.all_gather(output)


def grouped_column_parallel(
    count: int, num_in: int, parts: Sequence[tuple[str, int]], build: Build
) -> GroupedLinear | GroupedRuns:
    """Makes the layer that computes several projections of each of `count` experts: one product, if
    all have the same form. `parts` are the canonical names and this rank's outputs of each."""
    runs = []
    for form, group in groupby(parts, key=lambda part: build.form_of(part[0])):
        sizes = [size for _, size in group]
        runs.append(GroupedLinear(count, num_in, sum(sizes), form, build, len(sizes)))
    return runs[0] if len(runs) == 1 else GroupedRuns(runs)


def grouped_row_parallel(
    name: str, count: int, num_in: int, num_out: int, build: Build
) -> GroupedRowParallel | GroupedGathering:
    """Makes the layer called `name`, which takes this rank's `num_in` inputs of each expert."""
    form, size = build.form_of(name), build.parallel.size
    if size == 1:
        return GroupedRowParallel(count, num_in, num_out, form, build)
    part_form = form.of_part(num_in)
    if part_form is None:
        outputs = part(num_out, size, f"outputs of {name}")
        return GroupedGathering(count, num_in * size, outputs, form, build)
    linear = GroupedRowParallel(count, num_in, num_out, part_form, build)
    linear.stored_form = form
    return linear
