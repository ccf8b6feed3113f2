"""The stall meter: is the run waiting for data, and what would help?"""

THRESHOLD = 0.1
"""Share of the time. Below, more workers gain less than a tenth."""


class StallMeter:
    """Adds up how long the slowest rank waited for data; says so when it matters, and at the end.

    Args:
        workers: data.workers, by rank.
        cores: of this node, shared by `ranks` ranks.
    """

    def __init__(self, *, workers: int, cores: int, ranks: int) -> None:
        self._workers, self._cores, self._ranks = workers, cores, ranks
        self._waited = self._seconds = 0.0
        self._in_a_row = 0

    def note(self, share: float, seconds: float) -> str | None:
        """Take in a stretch of `seconds`, a `share` of it spent waiting; return a line when it begins to matter.

        One slow stretch is the filling of a queue, two in a row are a verdict, which is said once.
        """
        self._waited += share * seconds
        self._seconds += seconds
        self._in_a_row = self._in_a_row + 1 if share > THRESHOLD else 0
        return self.verdict(share) if self._in_a_row == 2 else None

    @property
    def share(self) -> float:
        """The share of all noted time that was spent waiting."""
        return self._waited / self._seconds if self._seconds else 0.0

    def verdict(self, share: float | None = None) -> str:
        """Return one line on `share`, or on the whole run."""
        share = self.share if share is None else share
        if share <= THRESHOLD:
            return f"compute-bound: {share:.0%} of the time waiting for data"
        free = self._cores - self._ranks * (self._workers + 1)
        if free >= self._ranks or self._workers == 0:
            way_out = f"raise data.workers (now {self._workers})"
        else:
            way_out = (
                f"all {self._cores} cores are taken by {self._ranks} x (1 + data.workers = {self._workers}) processes: "
                "give each rank more cores, or pack smaller photos (shorter_side)"
            )
        return f"data-bound: {share:.0%} of the time waiting for data; {way_out}"
