"""A batch without Ray: its shards, one after another or at the same time, by one worker in the test's process."""

from concurrent.futures import ThreadPoolExecutor

from runtime.batch.job import Job
from runtime.batch.plan import read_plan, write_plan
from runtime.batch.source.open import open_source
from runtime.batch.storage import Storage
from runtime.batch.workers.worker import Done, Worker

TOKENS = 24
GREEDY = {"temperature": 0, "max_new_tokens": TOKENS, "thinking": False}


def job_of(model, source, output, prompt=None, per_document=False, **settings) -> Job:
    output = Storage.at(output)
    for name in ("pages", "unfinished"):
        output.make_folder(name)
    opened = open_source(Storage.at(source), prompt, per_document=per_document)
    return Job(Storage.at(model), opened, output, **{"options": GREEDY, "max_rows": 4, **settings})


def planned(job):
    """The plan of a job, which is made once."""
    found = read_plan(job.output)
    if found is None:
        write_plan(job.output, job.planned(), job.source.parts())
        found = read_plan(job.output)
    return found[1]


def work(job, run="run", at_once=2) -> list[Done]:
    """Have a worker answer all shards."""
    worker = Worker(job, run)
    try:
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(worker.answer, planned(job)))
    finally:
        worker.close()


def rows_of(job):
    return [row for shard in planned(job) for row in job.files.read(shard.number)]
