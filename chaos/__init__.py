"""Kassa under faults: processes killed and frozen, links cut, servers emptied, clocks turned, and its history checked.

Reading order: `rounds.py` (what a round is), `cluster.py` (what runs), `proxy.py` (the links between), `load.py` (what
clients do and note), `faults.py` (what goes wrong), `checker.py` (what must be true of it all).
"""
