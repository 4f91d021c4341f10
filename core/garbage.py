"""How often a process looks for garbage that refers to itself; all other memory Python frees at once, without looking.

By its own settings Python would look after every 700 objects, at all the modules of a process, too, again and again: a
seventh of all processor time where batches are accepted and applied (docs/performance.md).
"""

import gc

OBJECTS_BETWEEN_LOOKS = 50_000  # some ten megabytes, if all of them were such garbage


def look_seldom() -> None:
    """Call it once a process has loaded what it needs: that is not looked at any more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_LOOKS)
