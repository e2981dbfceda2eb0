"""The journal of a shard: what was begun how often, by whom, and which page killed its worker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch.output.journal import Attempt
from runtime.batch.storage import Storage


@pytest.fixture(params=["", "memory://"])
def output(request, tmp_path) -> Storage:
    storage = Storage.at(f"{request.param}{tmp_path}/answers")
    storage.make_folder("unfinished")
    return storage


def test_starts_are_counted_in_a_run_and_over_all_runs(output):
    begun = [Attempt.begin(output, 3, run) for run in ("a", "a", "b", "a", "a")]
    assert [(one.starts, one.attempts) for one in begun] == [(1, 1), (2, 2), (1, 3), (1, 4), (2, 5)]
    other = Attempt.begin(output, 4, "a")
    assert (other.starts, other.attempts) == (1, 1)
    assert output.names("unfinished") == ["000003.json", "000004.json"]


def test_the_third_start_of_a_run_and_the_sixth_of_all_are_careful(output):
    assert [Attempt.begin(output, 0, "a").careful for _ in range(4)] == [False, False, True, True]
    assert [Attempt.begin(output, 1, f"run {number}").careful for number in range(7)] == [False] * 5 + [True] * 2


def test_a_shard_that_is_finished_is_forgotten(output):
    attempt = Attempt.begin(output, 3, "a")
    attempt.alone(1)
    attempt.end()
    assert output.names("unfinished") == []
    again = Attempt.begin(output, 3, "a")
    assert (again.starts, again.attempts, again.deaths) == (1, 1, {})


def test_a_row_that_was_alone_at_two_deaths_is_given_up(output):
    for deaths in range(3):
        attempt = Attempt.begin(output, 0, f"run {deaths}")
        assert attempt.deaths == ({} if deaths == 0 else {7: deaths})
        assert [attempt.kills(row) for row in (6, 7)] == [False, deaths == 2]
        attempt.alone(6)
        attempt.survived(6)
        attempt.alone(7)  # and the worker dies


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_deaths_of_any_sequence_are_those_that_were_not_survived(sequence):
    """A row that was survived has no deaths: those before were of something else."""
    output = Storage("memory:///journal")
    Attempt.begin(output, 0, "first").end()
    expected: dict[int, int] = {}
    attempt = Attempt.begin(output, 0, "a")
    for row, dies in sequence:
        attempt.alone(row)
        if dies:
            expected[row] = expected.get(row, 0) + 1
            attempt = Attempt.begin(output, 0, "a")
        else:
            expected.pop(row, None)
            attempt.survived(row)
        assert attempt.deaths == expected
        assert [attempt.kills(row) for row in range(4)] == [expected.get(row, 0) >= 2 for row in range(4)]
