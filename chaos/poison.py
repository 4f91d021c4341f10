"""Amounts by which the harness makes a decision go wrong; see `poisoned.py`, which only it runs."""

RAISE, KILL, LOOP = 66_600_001, 66_600_002, 66_600_003
POISONS = (RAISE, KILL, LOOP)
