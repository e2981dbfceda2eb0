"""How many tokens to draft, as arithmetic: costs and acceptance in, choices out. Seconds here are steps."""

import numpy as np
import pytest

from runtime.decoding.draft_policy import MAX_DRAFTS, DraftPolicy

TRIAL = 16  # calls before anything is decided
SETTLED = 60  # calls after which what was true of texts before no longer counts


class Machine:
    """Plays calls of given costs by number of drafts, drafts accepted with given probabilities by place."""

    def __init__(self, costs, acceptance, noise=0.0):
        self.policy, self.costs, self.acceptance, self.noise = DraftPolicy(), costs, acceptance, noise
        self.random = np.random.default_rng(0)
        self.seconds = self.tokens = 0.0

    def play(self, calls, most=MAX_DRAFTS):
        """Returns what was chosen."""
        chosen = []
        for _ in range(calls):
            drafts = self.policy.choose(most)
            stand = self.random.random(drafts) < self.acceptance[:drafts]
            accepted = int(np.cumprod(stand).sum())
            seconds = self.costs[drafts] * (1 + self.noise * self.random.exponential())
            self.policy.observe(drafts, accepted, seconds)
            chosen.append(drafts)
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + accepted + 1
        return chosen

    def best(self):
        expected = [1 + float(np.cumprod(self.acceptance)[:n].sum()) for n in range(MAX_DRAFTS + 1)]
        return int(np.argmax([tokens / cost for tokens, cost in zip(expected, self.costs, strict=True)]))


PAYING = {
    "one": ([1, 1.3, 1.9, 2.6], [0.9, 0.4, 0.3]),
    "two, which the first trial leaves out": ([1, 1.3, 1.5, 2.3], [0.9, 0.9, 0.3]),
    "three": ([1, 1.3, 1.5, 1.7], [0.95, 0.95, 0.9]),
    "three, though one does not pay": ([1, 2.1, 2.2, 2.3], [0.9, 0.9, 0.9]),
}


@pytest.mark.parametrize("noise", [0, 0.3])
@pytest.mark.parametrize("case", PAYING)
def test_it_drafts_as_many_as_pay_best(case, noise):
    machine = Machine(*PAYING[case], noise)
    machine.play(SETTLED)
    before = machine.seconds, machine.tokens
    chosen = machine.play(1000)
    assert chosen.count(machine.best()) > 0.75 * len(chosen)
    costs, acceptance = PAYING[case]
    best = (1 + float(np.cumprod(acceptance)[: machine.best()].sum())) / costs[machine.best()] / (1 + noise)
    assert (machine.tokens - before[1]) / (machine.seconds - before[0]) > 0.92 * best


def test_where_no_acceptance_would_pay_it_gives_up_after_one_trial():
    machine = Machine([1, 2.1, 3.2, 4.3], [1, 1, 1])
    assert sorted(machine.play(TRIAL)) == [0] * 8 + [1] * 4 + [3] * 4
    assert machine.policy.disabled
    assert not any(machine.play(10_000))


def test_rejected_drafts_alone_are_no_reason_to_give_up():
    """A call takes longer where drafts are taken back; one that took nothing back says what is possible."""
    policy = DraftPolicy()
    for number in range(TRIAL):
        drafts = policy.choose(MAX_DRAFTS)
        all_stand = number == 1
        policy.observe(drafts, drafts if all_stand else 0, 1 if not drafts else 1.6 if all_stand else 4.1)
    assert not policy.disabled


@pytest.mark.parametrize("cost", [1.3, 1.8])
def test_where_drafts_are_rejected_it_stops_and_trying_again_costs_little(cost):
    machine = Machine([1, cost, cost + 0.4, cost + 0.8], [0.05, 0.05, 0.05])
    machine.play(TRIAL)
    assert not machine.policy.disabled
    before = machine.seconds, machine.tokens
    chosen = machine.play(3000)
    assert any(chosen)
    assert (machine.tokens - before[1]) / (machine.seconds - before[0]) > 0.97


def test_acceptance_falls_and_comes_back():
    machine = Machine([1, 1.4, 1.7, 2], [0.9, 0.8, 0.7])
    assert machine.play(100)[-SETTLED:].count(0) < 12
    machine.acceptance = [0, 0, 0]
    machine.play(40)
    assert machine.play(200).count(0) > 180
    machine.acceptance = [0.9, 0.8, 0.7]
    machine.play(300)
    assert machine.play(200).count(0) < 20


def test_steps_that_become_cheaper_are_seen_while_it_drafts():
    """Plain steps are tried again too: what one took in an answer with a long context says little of a short one."""
    machine = Machine([1, 1.3, 1.5, 1.7], [0.9, 0.9, 0.9])
    assert machine.play(200)[-1] == 3
    machine.costs = [0.3, 1.3, 1.5, 1.7]
    machine.play(300)
    assert machine.play(100).count(0) > 90


def test_one_call_that_was_held_up_changes_nothing():
    machine = Machine([1, 1.3, 1.5, 1.7], [1, 1, 1])
    machine.play(200)
    machine.policy.observe(3, 3, 1000)
    assert machine.play(40).count(3) > 30


@pytest.mark.parametrize("most", range(MAX_DRAFTS))
def test_it_never_drafts_more_than_there_is_room_for(most):
    machine = Machine([1, 1.3, 1.5, 1.7], [1, 1, 1])
    for _ in range(30):
        machine.play(5)
        assert max(machine.play(2, most)) <= most
