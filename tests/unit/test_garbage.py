"""Garbage that refers to itself is looked for seldom, and found nevertheless."""

import subprocess
import sys

BEGINNING = """
import gc, weakref
from core.garbage import OBJECTS_BETWEEN_LOOKS, look_seldom

class Node:
    pass

def looks():
    return gc.get_stats()[0]["collections"]

look_seldom()
assert gc.get_freeze_count() > 1000, "what is loaded is still looked at"
before, kept = looks(), []
node = Node()
node.itself = node
gone = weakref.ref(node)
"""
NEW = """
del node
kept += [[] for _ in range(OBJECTS_BETWEEN_LOOKS // 2)]
assert gone() and looks() == before, "a look came too soon"
kept += [[] for _ in range(OBJECTS_BETWEEN_LOOKS)]
assert not gone(), "no look came"
"""
OLD = """
kept += [[] for _ in range(OBJECTS_BETWEEN_LOOKS * 3 // 2)]
assert looks() > before, "it has not grown old"
del node
kept += [[] for _ in range(4 * OBJECTS_BETWEEN_LOOKS)]
assert not gone(), "what has outlived a look piles up"
"""


def run(script: str) -> None:
    """In a process of its own: what is frozen here other tests could not look at."""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_it_is_looked_for_seldom_and_found() -> None:
    """New garbage, after so many objects."""
    run(BEGINNING + NEW)


def test_what_has_outlived_a_look_is_found_too() -> None:
    """As what a request in flight has left behind."""
    run(BEGINNING + OLD)
