"""A bound that no discipline can exceed, not even one that knows all arrivals, costs and utilities beforehand.

A schedule gives each request device seconds between its arrival and its deadline, and an exit for them. Time is divided
into cells, and each second of cell t gets a price p_t >= 0, a Lagrange multiplier. If every request were free to buy
any seconds of its time, even such as others buy, it would choose the exit with the largest surplus: its utility less
the price of its cheapest seconds. The surpluses and the price of all seconds,

    bound(p) = sum_i max_k (utility_ik - price of the cheapest seconds_ik) + sum_t p_t * length_t,

are together at least the utility of every schedule, whatever the multipliers (weak duality): in a schedule, no request
gets more than its largest surplus, and all together pay for no more seconds than there are. So any multipliers give a
true bound, and good ones a low bound. With one price for all seconds it is that of the fractional knapsack. From there,
subgradient steps raise the price where more is bought than there is, in cells that become shorter.

The seconds of an exit are those that its stages really took, and those that the front end takes away from the device.
The bound allows what no server can do: to stop and go on at any time, and to compute before the image is decoded.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.simulation.device import LATE_S
from server.simulation.workload import FrontEnd, SimulatedRequest

Floats = NDArray[np.float64]

CELLS_S = (0.8, 0.4, 0.2, 0.1)
"""The lengths of cells, one after the other; each is half of the one before, so that multipliers carry over."""
MOST_CELLS = 100
"""The most cells that one request may span. If the longest request would span more of the shortest cells, all cells are
made longer, because memory grows with this number."""
STEPS = 40
"""Subgradient steps at each length."""
PATIENCE = 5
"""Steps that may fail one after the other."""


def bound(requests: Sequence[SimulatedRequest], front_end: FrontEnd, cells_s: Sequence[float] = CELLS_S) -> float:
    """A total utility that no discipline exceeds on these requests."""
    lowest, multipliers = np.inf, None
    longest_s = max(request.deadline_s - request.arrived_s for request in requests)
    times = max(1.0, longest_s / MOST_CELLS / cells_s[-1])
    for cell_s in cells_s:
        market = Market(requests, front_end, times * cell_s)
        multipliers = market.one_price() if multipliers is None else np.repeat(multipliers, 2)[: market.cells_in_all]
        found, multipliers = market.lower(multipliers)
        lowest = min(lowest, found, float(market.utility.max(1).sum()))  # or if seconds cost nothing
    return lowest


class Market:
    """Requests that buy seconds of cells.

    `utility`, `seconds`: float64 (requests, exits + 1), of no answer and of each exit. `cells`: int64 (requests, cells
    of the longest deadline), in which a request may compute; `room_s`: how many seconds of each lie within its time.
    """

    def __init__(self, requests: Sequence[SimulatedRequest], front_end: FrontEnd, cell_s: float) -> None:
        exits = max(request.exits for request in requests)
        self.utility, self.seconds = np.zeros((2, len(requests), exits + 1))
        for row, request in enumerate(requests):
            spent_s = front_end.taken_s(request)
            for exit_index in range(1, exits + 1):
                last = min(exit_index, request.exits)
                spent_s += request.stage_s[exit_index - 1] if exit_index == last else 0.0
                self.seconds[row, exit_index], self.utility[row, exit_index] = spent_s, request.utility(last)
        begin_s = np.array([request.arrived_s for request in requests])
        end_s = np.array([min(request.deadline_s + LATE_S, request.give_up_s) for request in requests])
        first = np.floor(begin_s / cell_s).astype(np.int64)
        width = max(1, int((np.ceil(end_s / cell_s) - first).max()))
        cells = first[:, None] + np.arange(width)
        room_s = np.minimum(end_s[:, None], (cells + 1) * cell_s) - np.maximum(begin_s[:, None], cells * cell_s)
        self.room_s = np.maximum(0.0, room_s)
        self.cell_s = cell_s
        self.cells_in_all = max(1, math.ceil(end_s.max() / cell_s))
        self.cells = np.minimum(cells, self.cells_in_all - 1)  # beyond, there is no room anyway

    def one_price(self) -> Floats:
        """The same price for all cells: the one at which as many seconds are bought as there are, by bisection."""
        low, high = 0.0, float((self.utility[:, 1:] / self.seconds[:, 1:]).max())
        rows = np.arange(len(self.utility))
        for _ in range(30):
            price = (low + high) / 2
            chosen = (self.utility - price * self.seconds).argmax(1)
            enough = self.seconds[rows, chosen].sum() > self.cells_in_all * self.cell_s
            low, high = (price, high) if enough else (low, price)
        return np.full(self.cells_in_all, high)

    def lower(self, multipliers: Floats) -> tuple[float, Floats]:
        """The lowest bound that is found from these multipliers on, and its multipliers.

        The length of a step is that which would lower the bound by `hope` if it were linear (Polyak). Where steps do
        not succeed, the hope shrinks, and the search goes back to the best multipliers.
        """
        best, excess_s = self.value(multipliers)
        best_multipliers, best_excess_s = multipliers, excess_s
        direction, hope, failed = np.zeros_like(multipliers), 0.02 * best, 0
        for _ in range(STEPS):
            direction = excess_s + direction / 2
            square = float((direction**2).sum())
            if square == 0.0:
                break
            multipliers = np.maximum(0.0, multipliers + hope / square * direction)
            found, excess_s = self.value(multipliers)
            if found < best:
                best, best_multipliers, best_excess_s, failed = found, multipliers, excess_s, 0
                continue
            failed += 1
            if failed == PATIENCE:
                multipliers, excess_s, direction = best_multipliers, best_excess_s, np.zeros_like(multipliers)
                hope, failed = hope / 2, 0
        return best, best_multipliers

    def value(self, multipliers: Floats) -> tuple[float, Floats]:
        """The bound at these multipliers, and for each cell how many more seconds are bought than there are."""
        price = multipliers[self.cells]
        order = np.argsort(price, 1, kind="stable")
        price, room_s, cells = (np.take_along_axis(each, order, 1) for each in (price, self.room_s, self.cells))
        filled_s = np.cumsum(room_s, 1)
        bought_s = np.clip(self.seconds[:, :, None] - (filled_s - room_s)[:, None, :], 0, room_s[:, None, :])
        paid = (bought_s * price[:, None, :]).sum(2)
        surplus = np.where(self.seconds <= filled_s[:, -1:] + 1e-12, self.utility - paid, -np.inf)
        chosen = surplus.argmax(1)
        rows = np.arange(len(chosen))
        demand_s = np.bincount(cells.ravel(), bought_s[rows, chosen].ravel(), self.cells_in_all)
        total = surplus[rows, chosen].sum() + multipliers.sum() * self.cell_s
        return float(total), np.asarray(demand_s - self.cell_s, np.float64)
