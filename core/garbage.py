"""How often a process looks for garbage that refers to itself; other objects go as soon as nothing refers to them.

By its own settings Python looks at what is new after every 700 objects, and now and then at everything, the modules of
the process included: a seventh of all processor time where batches are accepted and applied (docs/performance.md).
"""

import gc

OBJECTS_BETWEEN_LOOKS = 50_000  # some ten megabytes, if all of them were such garbage
LOOKS_BETWEEN_OLDER = 2  # what has outlived a look is not looked at each time; Python's own ten would let it pile up


def look_seldom() -> None:
    """Call it once a process has loaded what it needs: that is not looked at any more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_LOOKS, LOOKS_BETWEEN_OLDER, LOOKS_BETWEEN_OLDER)
