"""When a worker that has been called looks for work again, and when it waits for the next bell instead. Pure."""

PAUSE_SECONDS_MAX = 0.004
PAUSE_SECONDS_PER_OPERATION = 0.001
PAUSE_SECONDS_MIN = 0.003  # where nothing was found
VAIN_LOOKS_MAX = 5  # who waits for answers asks in bursts


class Patience:
    """A moment's patience before each look lets one transaction apply many operations; where fewer than some thousand
    come in a second it tends to nothing. It halves at the most, since after the first few of a burst come the others.
    To look in vain a few times costs less than the bell that would call again.
    """

    def __init__(self) -> None:
        self.pause_seconds = 0.0  # before the next look
        self._vain_looks = 0

    def note(self, found: int) -> None:
        """Learn how many operations the last look has found."""
        self._vain_looks = 0 if found else self._vain_looks + 1
        wanted = found * PAUSE_SECONDS_PER_OPERATION or PAUSE_SECONDS_MIN
        self.pause_seconds = min(PAUSE_SECONDS_MAX, max(wanted, self.pause_seconds / 2))

    @property
    def is_over(self) -> bool:
        """Whether the last looks were all in vain."""
        return self._vain_looks >= VAIN_LOOKS_MAX
