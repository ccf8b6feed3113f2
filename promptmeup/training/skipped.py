"""Steps that were not taken, since their loss or gradient was not finite."""

from promptmeup.distributed.world import World, gather_objects
from promptmeup.errors import NotFiniteError, TrainingError


class Skipped:
    """Counts those in a row: a poisoned photo is one, a run that has diverged does not end by itself."""

    def __init__(self, most: int, world: World) -> None:
        self._most, self._world = most, world
        self._in_a_row = 0

    def insist(self, step: int, error: NotFiniteError) -> str:
        """Count a step and return what the ranks say of it. Collective.

        Raises:
            TrainingError: too many in a row.
        """
        self._in_a_row += 1
        said = gather_objects(str(error), self._world)
        # ranks whose rows are all finite have nothing to add to those that name images
        blamed = [f"rank {rank}: {text}" for rank, text in enumerate(said) if ": " in text.partition(": ")[2]]
        why = "; ".join(blamed) or said[0]
        if self._in_a_row > self._most:
            times = f"{self._in_a_row} steps in a row were not finite" if self._most else "not finite"
            raise TrainingError(
                f"step {step}: {times}: {why}. None of them was trained on and the last checkpoint is untouched; "
                "lower optim.lr, or look at these images, and start again to resume"
            )
        return why

    def end(self) -> None:
        """A step was taken."""
        self._in_a_row = 0
