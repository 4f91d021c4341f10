"""Garbage that refers to itself is looked for seldom, and found nevertheless."""

import subprocess
import sys

SCRIPT = """
import gc, weakref
from core.garbage import OBJECTS_BETWEEN_LOOKS, look_seldom

class Node:
    pass

look_seldom()
looks = gc.get_stats()[0]["collections"]
assert gc.get_freeze_count() > 1000, "what is loaded is still looked at"
node = Node()
node.itself = node
gone = weakref.ref(node)
del node
kept = [[] for _ in range(OBJECTS_BETWEEN_LOOKS // 2)]
assert gone() and gc.get_stats()[0]["collections"] == looks, "a look came too soon"
kept += [[] for _ in range(OBJECTS_BETWEEN_LOOKS)]
assert not gone(), "no look came"
"""


def test_it_is_looked_for_seldom_and_found() -> None:
    """In a process of its own, which is then as the API's and the workers' are."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
