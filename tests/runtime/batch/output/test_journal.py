"""The journal of a shard: what was begun how often, by whom, and which page killed its worker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.errors import InputError
from runtime.batch.output.journal import Attempt, forget_finished
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


def test_openings_are_noted_from_the_second_start_of_a_run_on(output):
    assert [Attempt.begin(output, 0, "a").notes for _ in range(3)] == [False, True, True]
    assert [Attempt.begin(output, 1, f"run {number}").notes for number in range(4)] == [False] * 4


def test_after_five_starts_of_a_run_or_ten_of_all_pages_are_answered_one_by_one(output):
    assert [Attempt.begin(output, 0, "a").one_by_one for _ in range(7)] == [False] * 5 + [True] * 2
    assert [Attempt.begin(output, 1, f"run {number}").one_by_one for number in range(12)] == [False] * 10 + [True] * 2


def test_a_shard_that_is_finished_is_forgotten(output):
    attempt = Attempt.begin(output, 3, "a")
    attempt.note(1, alone=True)
    attempt.end()
    assert output.names("unfinished") == []
    again = Attempt.begin(output, 3, "a")
    assert (again.starts, again.attempts, again.suspects, again.alone) == (1, 1, [], {})


def test_who_is_opened_when_a_worker_dies_is_a_suspect_and_no_more(output):
    """Of the run in which the worker died: a run that was stopped says nothing of its pages."""
    for start in range(9):
        attempt = Attempt.begin(output, 0, "a")
        assert attempt.suspects == ([7] if start else [])
        assert not attempt.kills(7)
        attempt.note(6)
        attempt.note(None)
        attempt.note(7)
    assert Attempt.begin(output, 0, "b").suspects == []


def test_a_row_that_was_alone_at_two_deaths_is_given_up(output):
    """Of whatever run: the driver may have died with its worker."""
    for deaths in range(3):
        attempt = Attempt.begin(output, 0, f"run {deaths}")
        assert attempt.alone == ({} if deaths == 0 else {7: deaths})
        assert [attempt.kills(row) for row in (6, 7)] == [False, deaths == 2]
        attempt.note(6, alone=True)
        attempt.survived(6)
        attempt.note(7, alone=True)  # and the worker dies


def test_a_suspect_that_survives_alone_is_none(output):
    Attempt.begin(output, 0, "a").note(3)
    attempt = Attempt.begin(output, 0, "a")
    attempt.note(3, alone=True)
    attempt.survived(3)
    again = Attempt.begin(output, 0, "a")
    assert (again.suspects, again.alone, again.noted) == ([], {}, None)


def test_failures_of_the_device_are_no_deaths_of_pages(output):
    for failures in (1, 2, 3):
        attempt = Attempt.begin(output, 0, "a")
        attempt.note(3, alone=True)
        assert attempt.failed() == failures
    attempt = Attempt.begin(output, 0, "a")
    assert (attempt.alone, attempt.suspects) == ({}, [])
    assert Attempt.begin(output, 0, "b").failures == 0


def test_deaths_while_a_shard_is_read_or_written_are_no_pages(output):
    counted = []
    for handled in (True, False, True, True):
        attempt = Attempt.begin(output, 0, "a")
        counted.append((attempt.outside, attempt.ends_outside))
        attempt.handle(now=True)
        if not handled:
            attempt.handle(now=False)  # and the worker dies later
    assert counted == [(0, False), (1, False), (1, False), (2, False)]
    assert Attempt.begin(output, 0, "a").ends_outside
    assert Attempt.begin(output, 0, "another run").outside == 0


def test_what_is_left_of_finished_shards_and_of_workers_is_forgotten(output):
    for number in (0, 1, 2):
        Attempt.begin(output, number, "a")
    output.write("unfinished/worker-1", b"2")
    forget_finished(output, {0, 2})
    assert output.names("unfinished") == ["000001.json"]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30))
def test_only_deaths_alone_count(sequence):
    output = Storage("memory:///journal")
    Attempt.begin(output, 0, "first").end()
    suspects: list[int] = []
    deaths: dict[int, int] = {}
    attempt = Attempt.begin(output, 0, "a")
    for row, alone, dies in sequence:
        attempt.note(row, alone=alone)
        if dies:
            if alone:
                deaths[row] = deaths.get(row, 0) + 1
            elif row not in suspects:
                suspects.append(row)
            attempt = Attempt.begin(output, 0, "a")
        elif alone:
            attempt.survived(row)
            suspects = [other for other in suspects if other != row]
        else:
            attempt.note(None)
        assert (attempt.suspects, attempt.alone) == (suspects, deaths)
        assert [attempt.kills(row) for row in range(4)] == [deaths.get(row, 0) >= 2 for row in range(4)]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"run": "a", "attempts": 1, "alone": {}, "noted": null}'])
def test_a_damaged_journal_is_one_line(content, output):
    output.write("unfinished/000003.json", content)
    with pytest.raises(InputError, match=r"unfinished/000003.json: is damaged .*; delete it$"):
        Attempt.begin(output, 3, "a")
