"""Requests to an engine, and what comes back."""

from dataclasses import dataclass, field

import numpy as np

from runtime.decoding.generate import generate
from runtime.decoding.sampling import Sampling
from runtime.engine.cache_plan import CachePlan
from runtime.engine.engine import Engine
from runtime.engine.request import Event, Failed, Finished, Piece, Request
from runtime.model import Model
from runtime.prompt import PromptInputs, embed_prompt

from ..damage import change_tensor


def engine_of(model, rows, context=2000, draft_tokens=0) -> Engine:
    return Engine(model, CachePlan(rows, context, 0), draft_tokens)


def tokens_prompt(ids) -> PromptInputs:
    return PromptInputs(np.array(ids), (), (), ())


def random_ids(seed, count):
    return np.random.default_rng(seed).integers(80, 500, count)


@dataclass
class Asked:
    """A request, and the events of its answer."""

    request: Request
    events: list[Event] = field(default_factory=list)
    sequence: object = None

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Piece)]

    @property
    def end(self) -> Finished:
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]

    @property
    def error(self) -> str:
        assert isinstance(self.events[-1], Failed)
        return str(self.events[-1].error)

    @property
    def texts(self) -> tuple[str, str]:
        """Reasoning and text."""
        shown = [event for event in self.events if isinstance(event, Piece | Finished)]
        return "".join(event.reasoning for event in shown), "".join(event.text for event in shown)


def ask(engine, inputs, max_new_tokens=20, like=None, **options) -> Asked:
    options = {"sampling": Sampling(), **options}
    asked = Asked(Request(inputs, max_new_tokens=max_new_tokens, **options))
    asked.sequence = engine.submit(asked.request, asked.events.append, like and like.sequence)
    return asked


def finish(engine) -> int:
    """Answer everything; gives the number of turns."""
    turns = 1
    while engine.turn():
        turns += 1
    return turns


def alone(model, request: Request) -> list[int]:
    """The answer of `generate`, which knows no other request."""
    prompt = embed_prompt(model, request.inputs)
    return list(generate(model, prompt, request.sampling.sampler(), request.max_new_tokens))


def damaged(folder) -> Model:
    """A model whose embedding of token 70 is NaN."""

    def damage(table):
        table = table.copy()
        table[70] = np.nan
        return table

    change_tensor(folder, "model.language_model.embed_tokens.weight", damage)
    return Model(folder, "cpu")
