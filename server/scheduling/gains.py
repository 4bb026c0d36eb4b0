"""What the further exits of a job are expected to be worth. Pure."""

from collections.abc import Mapping

from models.gains import Gains, Predictor


class GainModel:
    """The expected utility of further exits, by model. A model whose gains were not measured is expected to gain as in
    the paper, where each exit adds less for an operation than the one before, by a factor of about three."""

    FALL = 0.3

    def __init__(self, measured: Mapping[str, Gains] | None = None) -> None:
        self._measured = dict(measured or {})

    def ahead(self, model: str, exits: int, exit_index: int, shown: Mapping[Predictor, float]) -> tuple[float, ...]:
        """For each of the `exits` after `exit_index`: the utility that it is expected to add to that of `exit_index`,
        which shows `shown`."""
        gains = self._measured.get(model)
        added, found = 0.0, []
        for index in range(exit_index, exits):
            if gains is None:
                added += self.FALL**index
            elif index == exit_index:
                added += gains.exits[index].expected(shown)
            else:
                added += max(0.0, gains.exits[index].mean)
            found.append(added)
        return tuple(found)
