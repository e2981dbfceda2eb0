"""Measures documents with the baseline and every candidate, in one process or several, and resumes a stopped run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError, naming
from console.progress import say, track
from runtime.compare.measuring.models import check_documents
from runtime.compare.measuring.predictions import answer_ids, kl_divergence, predict
from runtime.compare.measuring.progress import changed_error
from runtime.compare.result import Difference, DocumentResult, ModelResult
from runtime.compare.stopping.control_tokens import control_ids, control_positions
from runtime.decoding.forward import answer_parts
from runtime.evaluate import truth_of
from runtime.ort.sessions import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from calib_data.document import Document
    from runtime.compare.measuring.baseline import Baseline
    from runtime.compare.measuring.models import LoadedModels, Models
    from runtime.compare.measuring.predictions import ModelOutput, Predictions
    from runtime.compare.measuring.progress import Progress
    from runtime.evaluate import Scored
    from runtime.model import Model


def measure_all(
    models: Models, loaded: LoadedModels, documents: Sequence[Document], progress: Progress, jobs: int
) -> list[DocumentResult]:
    """Measure all documents that `progress` does not hold yet, and return all results in order.

    With several jobs, every process loads its own models and those in `loaded` are released. Raises InputError for a
    document that cannot be measured, before anything is measured, and for one that changes before its turn.
    """
    keys = [document.digest() for document in documents]
    remaining = {key: document for key, document in zip(keys, documents, strict=True) if key not in progress}
    if len(remaining) < len(documents):
        say(f"resumed: {len(documents) - len(remaining)} of {len(documents)} documents are done")
    check_documents(loaded, list(remaining.values()))
    if jobs == 1 or not remaining:
        _store((_measure_unchanged(loaded, *item) for item in remaining.items()), remaining, progress)
    else:
        loaded.release()
        try:
            with closing(_measure_in_processes(models, remaining, jobs)) as results:  # at once, not when it is freed
                _store(results, remaining, progress)
        except BrokenProcessPool as error:
            raise InputError(
                f"--jobs {jobs}: a process was killed, probably out of memory; give a smaller number"
            ) from error
    return [progress[key] for key in keys]


def _store(results: Iterator[DocumentResult], keys: Iterable[str], progress: Progress) -> None:
    for key in track(list(keys), "comparing"):
        progress.add(key, next(results))


def _measure_unchanged(loaded: LoadedModels, digest: str, document: Document) -> DocumentResult:
    """Measure a document if it still has this digest. Its image is opened once, so every model sees the same."""
    with naming(document.name):
        opened = replace(document, picture=document.image)
    if opened.digest() != digest:
        raise changed_error(document)
    return measure(loaded.baseline, loaded.candidates, opened)


def _measure_in_processes(
    models: Models, remaining: Mapping[str, Document], jobs: int
) -> Generator[DocumentResult, None, None]:
    """Measure documents in several processes; results come in order.

    Few documents are handed out at a time and none is taken back: after a stop, Python's pool waits forever where a
    process ended while cancelled work was left.
    """
    options = Options(threads=max(1, (os.cpu_count() or 1) // jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (models, options)) as pool:
        coming: deque[Future[DocumentResult]] = deque()
        for item in remaining.items():
            with _no_interrupt():  # or Ctrl-C would stop the new process as well
                coming.append(pool.submit(_measure_in_worker, item))
            if len(coming) > jobs:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold SIGINT back until the end; processes that are started meanwhile never get it.

    They inherit the mask of this thread. But the kernel gives a signal to any thread, and Python then interrupts this
    one: half of what a new process needs would be written.
    """
    if threading.current_thread() is not threading.main_thread():  # Python never interrupts others
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


_worker_models: Callable[[], LoadedModels]


def _start_worker(models: Models, options: Options) -> None:
    """Let a worker load the models with its first document: an error in this initializer would break the pool."""
    global _worker_models
    _worker_models = cache(lambda: models.load(options))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the command was killed: it would wait for documents forever, its models in memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure_in_worker(item: tuple[str, Document]) -> DocumentResult:
    return _measure_unchanged(_worker_models(), *item)


def measure(baseline: Baseline, candidates: Sequence[Model], document: Document) -> DocumentResult:
    """Run one document through every model: answer it, and predict its true answer token by token.

    Raises InputError, with the document's name, if a model cannot.
    """
    with naming(document.name):
        tokens = answer_ids(candidates[0], document)
        reference = baseline.predict(document, tokens)
        outputs = [predict(model, document, tokens) for model in candidates]
        result = DocumentResult(
            document.name,
            document.prompt,
            truth_of(document),
            control_positions(tokens, control_ids(candidates[0])),
            ModelResult(reference.scored, [], []),
            [ModelResult(output.scored, [], []) for output in outputs],
            [Difference([], [], first_change(reference.scored, output.scored)) for output in outputs],
        )
        for part in answer_parts(len(tokens)):
            _add_predictions(result, tokens[part], reference, outputs)
        return result


def _add_predictions(
    result: DocumentResult, tokens: Sequence[int], reference: ModelOutput, outputs: Sequence[ModelOutput]
) -> None:
    """Add the next slice of predictions, those of `tokens`.

    Memory holds the logits of the baseline and of one candidate, and none of them when this returns.
    """
    expected = next(reference.predictions)
    _add_model(result.baseline, expected, tokens)
    for output, candidate, difference in zip(outputs, result.candidates, result.differences, strict=True):
        _add_candidate(candidate, difference, tokens, expected, next(output.predictions))


def _add_candidate(
    candidate: ModelResult,
    difference: Difference,
    tokens: Sequence[int],
    expected: Predictions,
    predictions: Predictions,
) -> None:
    _add_model(candidate, predictions, tokens)
    difference.kl.extend(kl_divergence(expected, predictions).tolist())
    difference.agree.extend((expected.top_tokens == predictions.top_tokens).tolist())


def _add_model(result: ModelResult, predictions: Predictions, tokens: Sequence[int]) -> None:
    """Add log-likelihood and rank of the tokens; None where they are not known."""
    true = np.array(tokens)
    log_likelihoods, ranks = predictions.log_likelihood(true), predictions.rank(true)
    known = ~np.isnan(log_likelihoods)
    result.log_likelihood.extend(float(v) if k else None for v, k in zip(log_likelihoods, known, strict=True))
    result.rank.extend(int(v) if k else None for v, k in zip(ranks, known, strict=True))


def first_change(baseline: Scored | None, candidate: Scored | None) -> int | None:
    """Position of the first token that differs between two answers; the end counts as a token."""
    if baseline is None or candidate is None or baseline.ids == candidate.ids:
        return None
    pairs = zip([*baseline.ids, None], [*candidate.ids, None], strict=False)
    return next(position for position, (expected, actual) in enumerate(pairs) if expected != actual)
