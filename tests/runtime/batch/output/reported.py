"""Rows of a run, made by hand or at random, and the report that is written of them."""

import json
import random

from runtime.batch.job import Job
from runtime.batch.output.report.page import write_report
from runtime.batch.output.summary import summarize
from runtime.batch.plan import Planned
from runtime.batch.source.folder import Folder
from runtime.batch.storage import Storage

SCHEMA = {
    "type": "object",
    "properties": {
        "seller": {"type": "string"},
        "number": {"type": "string"},
        "total": {"type": "number"},
        "items": {"type": "integer"},
        "paid": {"type": "boolean"},
        "lines": {"type": "array", "items": {"type": "string"}},
        "never": {"type": "string"},
    },
}
LONG = "x0" * 200
PAGES = 200


def job(folder, schema=None, form="parquet", prompt="What is the total?", **options):
    options = {"max_new_tokens": 64, "temperature": 0.0, "top_p": None, "thinking": False} | options
    source = Folder(Storage.at("/data/scans"), prompt, per_document=False)
    return Job(Storage.at("/models/reader-w4"), source, Storage.at(folder), schema, options, form=form)


def written(job, rows, file, per_shard=64):
    """Write rows as a run does, and its report."""
    job.files.storage.make_folder("pages")
    shards = range(-(-len(rows) // per_shard))
    for shard in shards:
        job.files.write(shard, rows[shard * per_shard : (shard + 1) * per_shard])
    counts = [len(rows[shard * per_shard : (shard + 1) * per_shard]) for shard in shards]
    planned = [Planned(shard, 0, count, 0, 0) for shard, count in enumerate(counts)]
    summary = summarize(job.files, planned, [column.name for column in job.columns])
    write_report(file, job.settings(), job.files, shards, summary)
    return file.read_text()


def row(number, job, /, **values):
    known = {"row": number, "document": f"{number // 3}.pdf", "page": number % 3 + 1, "attempts": 1}
    return dict.fromkeys(job.files.schema.names) | {"prompt": job.source.prompt or "Read the text."} | known | values


def answered(number, job, text="합계 100원", /, tokens=5, milliseconds=40, **values):
    ended = {"finish": "end", "prompt_tokens": 30, "tokens": tokens, "milliseconds": milliseconds}
    return row(number, job, answer=text, **ended | values)


def random_rows(job, count=PAGES):
    rows, rng = [], random.Random(3)
    for number in range(count):
        if rng.random() < 0.1:
            reason = rng.choice(["cannot be read", "page {page} cannot be drawn", "has no pages"])
            error = f"{number // 3}.pdf: " + reason.format(page=number % 3 + 1)
            rows.append(row(number, job, error=error, attempts=rng.randrange(1, 3)))
            continue
        fields = {
            "seller": rng.choice(["Acme", "한빛", "Acme", "", None, LONG]),
            "number": f"INV-{number}",
            "total": rng.choice([None, round(rng.uniform(-5, 90_000), 2)]),
            "items": rng.randrange(1, 40),
            "paid": rng.random() < 0.5,
            "lines": rng.choice([[], ["a", "b"]]),
            "never": None,
        }
        counts = {"tokens": rng.randrange(1, 64), "milliseconds": int(rng.lognormvariate(6, 1))}
        end = {"finish": "length"} if counts["tokens"] > 55 else {}
        rows.append(answered(number, job, json.dumps(fields, ensure_ascii=False), **counts, **end, **fields))
    return rows
