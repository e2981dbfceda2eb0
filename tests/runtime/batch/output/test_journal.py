"""The journal of a shard: what was begun how often, by whom, and which page killed its worker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
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


def test_openings_are_noted_from_the_second_start_of_a_run_and_the_third_of_all(output):
    assert [Attempt.begin(output, 0, "a").notes_openings for _ in range(3)] == [False, True, True]
    noted = [Attempt.begin(output, 1, f"run {number}").notes_openings for number in range(4)]
    assert noted == [False, False, True, True]


def test_starts_that_no_note_explains_are_followed_by_one_page_at_a_time(output):
    assert [Attempt.begin(output, 0, "a").one_by_one for _ in range(7)] == [False] * 5 + [True] * 2
    assert [Attempt.begin(output, 1, f"run {number}").one_by_one for number in range(12)] == [False] * 10 + [True] * 2
    for start in range(9):  # each with a row noted
        attempt = Attempt.begin(output, 2, "a")
        assert (attempt.one_by_one, attempt.deaths) == (False, dict.fromkeys(range(start), 1))
        attempt.note(start)


def test_a_shard_that_is_finished_is_forgotten(output):
    attempt = Attempt.begin(output, 3, "a")
    attempt.note(1)
    attempt.end()
    assert output.names("unfinished") == []
    again = Attempt.begin(output, 3, "a")
    assert (again.starts, again.attempts, again.deaths) == (1, 1, {})


def test_a_row_that_was_noted_at_two_deaths_is_given_up(output):
    for deaths in range(3):
        attempt = Attempt.begin(output, 0, f"run {deaths}")
        assert attempt.deaths == ({} if deaths == 0 else {7: deaths})
        assert [attempt.kills(row) for row in (6, 7)] == [False, deaths == 2]
        attempt.note(6)
        attempt.note(None)
        attempt.note(7)  # and the worker dies


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30))
def test_deaths_of_any_sequence_are_those_with_the_row_in_hand(sequence):
    output = Storage("memory:///journal")
    Attempt.begin(output, 0, "first").end()
    expected: dict[int, int] = {}
    attempt = Attempt.begin(output, 0, "a")
    for row, survived, dies in sequence:
        attempt.note(row)
        if survived:
            attempt.note(None)
        if dies:
            expected = expected if survived else expected | {row: expected.get(row, 0) + 1}
            attempt = Attempt.begin(output, 0, "a")
        assert attempt.deaths == expected
        assert [attempt.kills(row) for row in range(4)] == [expected.get(row, 0) >= 2 for row in range(4)]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"run": "a", "attempts": 1, "deaths": {}, "noted": 1}'])
def test_a_damaged_journal_is_one_line(content, output):
    output.write("unfinished/000003.json", content)
    with pytest.raises(InputError, match=r"unfinished/000003.json: is damaged .*; delete it$"):
        Attempt.begin(output, 3, "a")
