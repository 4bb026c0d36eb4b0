"""Solvers of z = f(z), one evaluation of f at a time: Broyden's method, Anderson mixing, and plain iteration.

A `Solution` is a value. Every tensor of it has the N requests of a batch first, and nothing mixes them, so that a
request gets the same answer alone and in a batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""A request has converged once its residual norm is below this times the square root of the number of values."""
DIVERGED = 1e6
"""A request is given up once its residual norm is this many times the first."""


@dataclass(frozen=True)
class Solution:
    """How far the solver has come with N requests of n values each.

    `z`: (N, n), where f is to be evaluated next: iterate number `len(residuals)`. `best`: (N, n), the iterate with the
    smallest residual so far, which is the answer. `residuals`: |f(z) - z| of every iterate so far, each (N,).
    `lowest`: (N,), the smallest of them. `ended`: bool (N,), requests that have converged or diverged; their answer no
    longer changes. `previous`: the latest z and f(z) - z. `pairs`: what the solver remembers, the oldest first.
    """

    z: Tensor
    best: Tensor
    lowest: Tensor
    ended: Tensor
    residuals: tuple[Tensor, ...] = ()
    previous: tuple[Tensor, ...] = ()
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()


class FixedPointSolver(ABC):
    """`memory`: how many pairs of vectors are remembered; the oldest ones are forgotten."""

    def __init__(self, memory: int = 27) -> None:
        self.memory = memory

    def start(self, z: Tensor) -> Solution:
        """The solution before the first evaluation, at `z`, float (N, n)."""
        lowest = z.new_full((len(z),), torch.inf)
        return Solution(z, z, lowest, torch.zeros(len(z), dtype=torch.bool, device=z.device))

    def advance(self, solution: Solution, fz: Tensor, *, unrolled: bool = False) -> Solution:
        """The solution after f was evaluated at `solution.z`: `fz` is (N, n). Requests that had ended stay as they
        were. `unrolled`: the answer is the latest iterate, whatever its residual; for training."""
        gap = fz - solution.z
        residual = gap.detach().norm(dim=1)
        better = ~solution.ended & (unrolled | (residual < solution.lowest))
        first = solution.residuals[0] if solution.residuals else residual
        small = residual < TOLERANCE * solution.z.shape[1] ** 0.5
        found = replace(
            solution,
            best=torch.where(better[:, None], solution.z, solution.best),
            lowest=torch.where(better, residual, solution.lowest),
            ended=solution.ended | small | (residual > DIVERGED * first),
            residuals=(*solution.residuals, torch.where(solution.ended, solution.lowest, residual)),
        )
        return self._next(found, fz, gap)

    @abstractmethod
    def _next(self, solution: Solution, fz: Tensor, gap: Tensor) -> Solution:
        """`solution` with the next z. `gap`: (N, n), f(z) - z."""

    def _remembered(self, solution: Solution, pair: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        return (*solution.pairs, pair)[-self.memory :]


class Broyden(FixedPointSolver):
    """Broyden's good method with full steps. The inverse Jacobian of f(z) - z is kept as -I + U V^T.

    A pair is a column of U and one of V. `first_step`: the factor of the first step, 1 or -1.
    """

    def __init__(self, memory: int = 27, first_step: float = 1.0) -> None:
        super().__init__(memory)
        self.first_step = first_step

    def _next(self, solution: Solution, fz: Tensor, gap: Tensor) -> Solution:
        step = self.first_step * gap
        if solution.previous:
            z_before, gap_before = solution.previous
            moved, change = solution.z - z_before, gap - gap_before
            left = -moved  # moved^T (-I + U V^T)
            right = -change  # (-I + U V^T) change
            for u, v in solution.pairs:
                left = left + v * _dot(u, moved)
                right = right + u * _dot(v, change)
            u = torch.nan_to_num((moved - right) / _dot(left, change), nan=0.0, posinf=0.0, neginf=0.0)
            v = torch.nan_to_num(left, nan=0.0)
            solution = replace(solution, pairs=self._remembered(solution, (u, v)))
            step = gap
            for u, v in solution.pairs:
                step = step - u * _dot(v, gap)
        return replace(solution, z=solution.z + step, previous=(solution.z, gap))


class Anderson(FixedPointSolver):
    """Anderson mixing: the next z is the combination of the last values of f whose residuals cancel best.

    A pair is z's residual and f(z). The weights sum to 1 and solve the normal equations with a small regularisation.
    """

    REGULARISATION = 1e-4

    def _next(self, solution: Solution, fz: Tensor, gap: Tensor) -> Solution:
        pairs = self._remembered(solution, (gap, fz))
        gaps = torch.stack([pair[0] for pair in pairs], 1)
        count = len(pairs)
        bordered = gap.new_zeros(len(gap), count + 1, count + 1)
        bordered[:, 0, 1:] = bordered[:, 1:, 0] = 1
        identity = torch.eye(count, dtype=gap.dtype, device=gap.device)
        bordered[:, 1:, 1:] = gaps @ gaps.transpose(1, 2) + self.REGULARISATION * identity
        sums = gap.new_zeros(len(gap), count + 1, 1)
        sums[:, 0] = 1
        weights = torch.linalg.solve(bordered, sums)[:, 1:]
        mixed = sum(pair[1] * weights[:, index] for index, pair in enumerate(pairs))
        return replace(solution, z=mixed, pairs=pairs)


class PlainIteration(FixedPointSolver):
    """z = f(z). Remembers nothing."""

    def _next(self, solution: Solution, fz: Tensor, gap: Tensor) -> Solution:
        return replace(solution, z=fz)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of every request: (N, n), (N, n) -> (N, 1)."""
    return (a * b).sum(1, keepdim=True)
