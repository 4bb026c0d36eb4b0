"""Which matrices share memory during a step."""

from collections import defaultdict
from collections.abc import Sequence

from models.executors.cpu.ops import Matrix, Phases, RowLoop


def place(phases: Phases, features: Sequence[Matrix]) -> tuple[list[Matrix], dict[Matrix, int]]:
    """Gives every matrix of `phases` a slot. Returns one matrix of each slot, and the slot of each matrix.

    `features`, the step's inputs and outputs, come first and have slots of their own. Other matrices of the same shape
    share a slot if they are never alive in the same phase.
    """
    slots: list[Matrix] = []
    slot_of: dict[Matrix, int] = {}
    for matrix in features:
        if matrix not in slot_of:
            slot_of[matrix] = len(slots)
            slots.append(matrix)
    uses = [_matrices(phase) for phase in phases]
    last_use = {matrix: index for index, used in enumerate(uses) for matrix in used}
    free: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, used in enumerate(uses):
        for matrix in used:
            if matrix in slot_of:
                continue
            if free[_shape(matrix)]:
                slot_of[matrix] = free[_shape(matrix)].pop()
            else:
                slot_of[matrix] = len(slots)
                slots.append(matrix)
        for matrix in used:
            if last_use[matrix] == index and matrix not in features:
                free[_shape(matrix)].append(slot_of[matrix])
    return slots, slot_of


def _shape(matrix: Matrix) -> tuple[object, ...]:
    return matrix.level, matrix.row_pitch, matrix.domain, matrix.scratch


def _matrices(phase: Sequence[RowLoop]) -> list[Matrix]:
    """The matrices that a phase reads or writes, each once, in order."""
    every = (
        matrix
        for loop in phase
        for op in loop.ops
        for matrix in (op.source, op.target, op.residual, op.pre_activation)
        if matrix is not None
    )
    return list(dict.fromkeys(every))
