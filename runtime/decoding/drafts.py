"""How many tokens are drafted for an answer, and how many of them were accepted; which sessions that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from console.errors import NoMemoryError
from console.progress import say
from runtime.decoding.draft_policy import MAX_DRAFTS, DraftPolicy

if TYPE_CHECKING:
    from runtime.exported import ExportedModel

DraftTokens = int | DraftPolicy
"""Draft tokens ahead of each decoder call, or the policy that chooses the number."""


@dataclass
class Drafts:
    """The number of draft tokens of each decoder call in one answer, and counts of what happened."""

    tokens: int
    """Draft tokens of a call at most."""
    policy: DraftPolicy | None = None
    """Chooses a number up to `tokens` for each call; None always drafts `tokens`."""
    calls: int = 0
    """Decoder calls after the prompt."""
    drafted: int = 0
    """Draft tokens."""
    accepted: int = 0
    """Draft tokens that the sampler chose too."""

    @classmethod
    def begin(cls, tokens: DraftTokens) -> Drafts | None:
        """Counts of a new answer; None where none are drafted."""
        if isinstance(tokens, DraftPolicy):
            return None if tokens.disabled else cls(MAX_DRAFTS, tokens)
        return cls(tokens) if tokens else None

    @property
    def disabled(self) -> bool:
        """Whether the policy will draft nothing any more."""
        return self.policy is not None and self.policy.disabled

    @property
    def possible(self) -> bool:
        """Whether a call could have had draft tokens; not where the policy found no memory for them."""
        return self.policy is None or self.calls > 0

    @property
    def acceptance(self) -> float | None:
        """Accepted share of the draft tokens; None before the first."""
        return self.accepted / self.drafted if self.drafted else None

    def choose(self, most: int) -> int:
        """Choose the number of draft tokens of the next call, at most `most`."""
        most = min(self.tokens, most)
        return most if self.policy is None else self.policy.choose(most)

    def observe(self, drafts: int, accepted: int, seconds: float) -> None:
        """Report the time of a call to the policy."""
        if self.policy is not None:
            self.policy.observe(drafts, accepted, seconds)


def may_draft(tokens: DraftTokens) -> bool:
    """Whether any answer may have draft tokens."""
    return Drafts.begin(tokens) is not None


def open_drafting_sessions(model: ExportedModel, tokens: DraftTokens) -> None:
    """Open the decoder and, for draft tokens, the MTP layer, where they are not open yet.

    Raises InputError where they cannot be opened. Where a policy may draft and the MTP layer does not fit in memory,
    answers come without drafts.
    """
    policy = tokens if isinstance(tokens, DraftPolicy) else None
    model.open_sessions(drafts=policy is None and may_draft(tokens))
    if policy is not None and not policy.disabled:
        problem = None
        try:
            model.open_sessions(drafts=True)
        except NoMemoryError as error:
            problem = str(error)
        if problem is not None:
            give_up_drafts(model, policy)
            say_without_drafts(problem)


def give_up_drafts(model: ExportedModel, policy: DraftPolicy) -> None:
    """Draft nothing any more, and free the MTP layer: not while an error is handled whose traceback refers to it."""
    policy.disabled = True
    model.unload_drafter()


def say_without_drafts(problem: str) -> None:
    """Say on stderr that nothing is drafted for a lack of memory."""
    say(f"answering without drafts: {problem}")
