"""Opens pages and has one engine answer them, as many at a time as it has rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from console.errors import InputError
from runtime.answer import answer_settings
from runtime.batch.source.lines import Lines
from runtime.batch.source.page import Page
from runtime.batch.storage_error import StorageError, asked_again, is_of_storage
from runtime.batch.workers.model_folder import local_model
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.sampling import Sampling
from runtime.decoding.structured import Grammar, GrammarTokenizer
from runtime.engine.answer_all import Collected
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Failed, Finished, Request
from runtime.engine.thread import ClosedError, EngineThread
from runtime.evaluate import require_vision
from runtime.exported import ExportedModel
from runtime.ort.sessions import session_options
from runtime.prompt import fitting_images, prompt_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.answer import AnswerSettings
    from runtime.batch.job import Job
    from runtime.engine.request import Event
    from runtime.exported import ModelFolder

_AHEAD = 2  # pages for each row that are opened before a row is free
_OPENERS = 2  # shards whose pages are opened at the same time
_UNREADABLE = 3  # pages in a row that no storage gave
_PROMPT_TOKENS = 1024  # of a prompt beside its image, by default


Note = Callable[[int | None], None]
"""Takes the row that is in hand."""
Opened = list[tuple[str, Image.Image]]
"""Pictures of a page, and what errors call them."""


class BrokenEngineError(Exception):
    """The engine or its device has failed: only a new process can go on."""


@dataclass
class Answered:
    """A page and its answer."""

    page: Page
    """What was asked."""
    collected: Collected
    """The answer, when it has ended."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when it has."""

    @property
    def error(self) -> InputError | None:
        """Why there is no answer; None where there is one."""
        return self.collected.end.error if isinstance(self.collected.end, Failed) else None

    @classmethod
    def failed(cls, page: Page, error: InputError) -> Answered:
        """A page without an answer."""
        answered = cls(page, Collected(end=Failed(error)))
        answered.ended.set()
        return answered


def settle(job: Job, model: ModelFolder) -> tuple[AnswerSettings, Grammar | None]:
    """How a model answers, and what its answers must match. Raises InputError for options that cannot be used."""
    if not isinstance(job.source, Lines):  # which may ask without pictures
        require_vision(model)
    settings = answer_settings(model, DraftPolicy(), {**job.options, "draft_tokens": 0})
    if job.schema is None:
        return settings, None
    tokenizer = GrammarTokenizer(model.chat, model.manifest.text.vocab_size, model.end_ids)
    return settings, Grammar.json_schema(tokenizer, job.schema, "--schema")


class Answering:
    """A model and its engine. Several threads may ask at the same time."""

    def __init__(self, job: Job) -> None:
        """Open the model and its sessions. Raises InputError as `settle` does, and where it does not fit."""
        options = session_options(job.device, memory_limit=job.memory_limit, threads=job.threads)
        self._model = ExportedModel(local_model(job.model), job.device, options)
        self._settings, self._grammar = settle(job, self._model)
        plan = plan_cache(self._model, job.max_rows, job.max_context or self._usual_context(job))
        self._context = plan.context
        self._engine = EngineThread(Engine(self._model, plan, picture_bytes=0))
        self._places = threading.Semaphore(_AHEAD * plan.rows)
        self._openers = threading.Semaphore(_OPENERS)
        self._opening = threading.Lock()  # neither PDFium nor Python's warnings may be used by two threads
        self._opening_now: tuple[str, float] | None = None
        self._unreadable = 0

    def opened_longer_than(self, seconds: float) -> str | None:
        """The page that is opened now, if that has taken so long."""
        opening = self._opening_now
        return opening[0] if opening is not None and time.monotonic() - opening[1] > seconds else None

    @property
    def turn_seconds(self) -> float:
        """How long the engine's step has taken that runs now; 0 where none does."""
        return self._engine.turn_seconds

    def together(self, pages: Mapping[int, Page], note: Note | None = None) -> dict[int, Answered]:
        """Answer pages at the same time, by their rows. No more are open, of all callers, than the engine soon needs.

        note: told a row before it is opened, and None after it, while no other page is; what it raises ends all. A page
        that cannot be opened or answered has its error. Raises BrokenEngineError.
        """
        answered = {}
        with self._openers:
            for row, page in pages.items():
                self._places.acquire()
                answered[row] = self._ask(row, page, note)
        for one in answered.values():
            one.ended.wait()
            if isinstance(one.error, ClosedError):
                raise BrokenEngineError(str(one.error))
        return answered

    def check_device(self) -> None:
        """Raise BrokenEngineError where not even a short text is answered."""
        asked = Answered(Page("", None, "?", lambda: iter(())), Collected())
        self._submit(asked, lambda: Request(prompt_inputs(self._model, "?"), Sampling(), 1))
        asked.ended.wait()
        if asked.error is not None:
            raise BrokenEngineError(str(asked.error))

    def close(self) -> None:
        """End the engine."""
        self._engine.close(0)

    def _ask(self, row: int, page: Page, note: Note | None) -> Answered:
        asked = Answered(page, Collected())
        opened = self._open(row, page, note)
        self._submit(asked, lambda: self._request(page, opened), self._places.release)
        return asked

    def _open(self, row: int, page: Page, note: Note | None) -> Opened | InputError:
        """Open the pictures of a page; one page at a time is. Returns what is wrong with them, if anything is.

        Raises StorageError where some pages in a row could not be read: it is no page's fault.
        """
        opened: Opened | InputError
        with self._opening:
            if note is not None:
                note(row)
            self._opening_now = page.document, time.monotonic()
            try:
                opened = self._read(page)
            finally:
                self._opening_now = None
            if note is not None:
                note(None)
            self._unreadable = self._unreadable + 1 if isinstance(opened, StorageError) else 0
            if isinstance(opened, StorageError) and self._unreadable >= _UNREADABLE:
                raise opened
        return opened

    def _read(self, page: Page) -> Opened | InputError:
        """Pictures of a page, or what is wrong with it."""
        try:
            return asked_again(lambda: list(fitting_images(self._model, page.pictures())))
        except InputError as error:
            return StorageError(str(error)) if is_of_storage(error) else error
        except Exception as error:  # decoders raise almost anything; other pages are not affected
            return InputError(f"cannot be read ({type(error).__name__}: {error})")

    def _submit(
        self, asked: Answered, request: Callable[[], Request], release: Callable[[], None] = lambda: None
    ) -> None:
        """Give a request to the engine; what is wrong with it ends the page."""

        def deliver(event: Event) -> None:
            asked.collected.deliver(event)
            if isinstance(event, Finished | Failed):
                release()
                asked.ended.set()

        try:
            self._engine.submit(request(), deliver)
        except InputError as error:
            deliver(Failed(error))
        except Exception as error:  # what resizing raises, of a picture that no test had
            deliver(Failed(InputError(f"cannot be read ({type(error).__name__}: {error})")))

    def _request(self, page: Page, opened: Opened | InputError) -> Request:
        """A page as the engine takes it. Raises InputError where it could not be opened, or does not fit."""
        settings, longest = self._settings, self._settings.max_new_tokens
        if isinstance(opened, InputError):
            raise opened
        names, images = [name for name, _ in opened], [image for _, image in opened]
        inputs = prompt_inputs(self._model, page.prompt, images, names=names, thinking=settings.thinking)
        needed = min(len(inputs.ids) + longest, self._model.manifest.text.context)
        if needed > self._context:
            raise InputError(
                f"prompt: {len(inputs.ids)} tokens and an answer of {longest} need --max-context {needed}, "
                f"and it is {self._context}"
            )
        thinking = settings.thinking, settings.thinking_budget
        return Request(inputs, settings.sampling, longest, *thinking, grammar=self._grammar)

    def _usual_context(self, job: Job) -> int | None:
        """Tokens that the largest image needs with its prompt and answer; None for documents of any length."""
        if job.source.per_document:
            return None
        tokens = _PROMPT_TOKENS + self._settings.max_new_tokens
        if self._model.manifest.vision is not None:
            images = self._model.image_settings
            tokens += images.max_pixels // (images.patch_size * images.merge_size) ** 2
        return min(tokens, self._model.manifest.text.context)
