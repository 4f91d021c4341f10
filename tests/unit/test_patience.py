"""How long a worker waits between its looks for work."""

from worker.patience import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN, VAIN_LOOKS_MAX, Patience


def pauses(*found: int) -> list[float]:
    patience = Patience()
    seconds = []
    for operations in found:
        patience.note(operations)
        seconds.append(round(patience.pause_seconds, 6))
    return seconds


def test_the_more_was_found_the_longer_is_the_pause():
    assert pauses(1, 2, 3, 4, 5, 3_000) == [0.001, 0.002, 0.003, 0.004, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX]


def test_after_many_a_few_do_not_end_the_patience_at_once():
    assert pauses(64, 1, 1, 1, 1, 1) == [0.004, 0.002, 0.001, 0.001, 0.001, 0.001]


def test_where_nothing_is_found_it_does_not_look_all_the_time():
    assert pauses(0, 0) == [PAUSE_SECONDS_MIN] * 2
    assert pauses(64, 0, 0, 0) == [0.004, PAUSE_SECONDS_MIN, PAUSE_SECONDS_MIN, PAUSE_SECONDS_MIN]


def test_it_ends_after_some_looks_in_vain_one_after_another():
    patience = Patience()
    for found in [0] * (VAIN_LOOKS_MAX - 1) + [1] + [0] * (VAIN_LOOKS_MAX - 1):
        patience.note(found)
        assert not patience.is_over
    patience.note(0)
    assert patience.is_over
    patience.note(1)
    assert not patience.is_over
