"""Which matrices share memory during a step."""

from collections import defaultdict
from collections.abc import Sequence

from models.executors.cpu.ops import Matrix, Phases, RowLoop


def place(phases: Phases, features: Sequence[Matrix]) -> tuple[list[Matrix], dict[Matrix, int]]:
    """Gives every matrix of `phases` a slot. Returns one matrix of each slot, and the slot of each matrix.

    `features`, the step's inputs and outputs, come first and have slots of their own. A matrix shares the slot of the
    one that it replaces (`Matrix.over`). Other matrices of the same shape share a slot if they are never alive in the
    same phase.
    """
    slots: list[Matrix] = []
    slot_of: dict[Matrix, int] = {}  # of the first matrix of each chain of replacements
    for matrix in features:
        if matrix.first not in slot_of:
            slot_of[matrix.first] = len(slots)
            slots.append(matrix)
    homes = set(slot_of)
    uses = [_matrices(phase) for phase in phases]
    last_use = {matrix.first: index for index, used in enumerate(uses) for matrix in used}
    free: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, used in enumerate(uses):
        firsts = dict.fromkeys(matrix.first for matrix in used)
        for first in firsts:
            if first in slot_of:
                continue
            if free[_shape(first)]:
                slot_of[first] = free[_shape(first)].pop()
            else:
                slot_of[first] = len(slots)
                slots.append(first)
        for first in firsts:
            if last_use[first] == index and first not in homes:
                free[_shape(first)].append(slot_of[first])
    every = {matrix for used in uses for matrix in used} | set(features)
    return slots, {matrix: slot_of[matrix.first] for matrix in every}


def _shape(matrix: Matrix) -> tuple[object, ...]:
    return matrix.level, matrix.row_bytes, matrix.domain, matrix.scratch


def _matrices(phase: Sequence[RowLoop]) -> list[Matrix]:
    """The matrices that a phase reads or writes, each once, in order."""
    every = (matrix for loop in phase for op in loop.ops for matrix in op.matrices)
    return list(dict.fromkeys(every))
