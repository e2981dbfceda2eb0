"""Rows and tokens of the KV cache: what fits the memory, and what is refused with sizes that would fit."""

import pytest

from console.errors import InputError, NoMemoryError
from runtime.engine.cache_plan import choose_sizes, plan_cache
from runtime.ort.memory import _free_on_host, free_memory


def size(tokens, rows):
    """64 KiB a token and windows of 768 MiB a row, as EXAONE 4.5 33B in float16."""
    return rows * (tokens * 65536 + (768 << 20))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("budget", "rows", "context", "expected"),
    [
        (58 * GIB, None, None, (16, 32768)),
        (3 * GIB, None, None, (1, 32768)),
        (2 * GIB, None, None, (1, 20480)),
        (8 * GIB, 4, None, (4, 20480)),
        (8 * GIB, None, 4096, (8, 4096)),
        (2 * GIB, 2, 4096, (2, 4096)),
        (None, None, None, (16, 32768)),
        (None, 3, 100_000, (3, 100_000)),
        (80 * GIB, None, 262_144, (4, 262_144)),
    ],
)
def test_as_many_rows_as_fit(budget, rows, context, expected):
    plan = choose_sizes(size, budget, (rows, 16), (context, 262_144))
    assert (plan.rows, plan.context) == expected
    assert plan.bytes == size(plan.context, plan.rows)
    assert budget is None or plan.bytes <= budget
    assert str(plan).startswith(f"KV cache: {plan.rows} rows of {plan.context} tokens, ")


@pytest.mark.parametrize(
    ("budget", "rows", "context", "message"),
    [
        (
            2 * GIB,
            None,
            32768,
            "1 rows of 32768 tokens does not fit: 2.00 GiB are left for it; give --max-context 20480$",
        ),
        (4 * GIB, 3, 16384, "3 rows of 16384 tokens .* give --max-context 9557 or --max-rows 2$"),
        (GIB // 2, None, None, "1 rows of any tokens .* close other programs, or export with --kv-bits 8$"),
        (GIB, 2, None, "2 rows of any tokens .* close other programs"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(budget, rows, context, message):
    with pytest.raises(NoMemoryError, match=message):
        choose_sizes(size, budget, (rows, 16), (context, 262_144))


@pytest.mark.slow
def test_the_plan_of_a_model_is_for_the_memory_that_is_free(reader):
    plan = plan_cache(reader, 3, 1000)
    assert (plan.rows, plan.context) == (3, 1000)
    assert plan.bytes == reader.decoder.cache_bytes(1000, 3)
    with pytest.raises(InputError, match=r"^--max-context 40000: must be from 2 to the model's context of 32768$"):
        plan_cache(reader, None, 40000)
    with pytest.raises(InputError, match=r"^--max-rows 0: must be 1 or more$"):
        plan_cache(reader, 0, None)
    with pytest.raises(NoMemoryError, match="rows of 32768 tokens does not fit"):
        plan_cache(reader, 1_000_000, 32768)


def test_free_memory_is_that_of_the_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2000 kB\nMemAvailable:    1000 kB\n")
    assert _free_on_host(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert _free_on_host(meminfo, tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("1000000\n")
    assert _free_on_host(meminfo, tmp_path) == 100_000
    assert _free_on_host(tmp_path / "none", tmp_path) is None


@pytest.mark.slow
def test_free_memory_of_this_machine(reader):
    free = free_memory(reader.device)
    assert free is None or 0 < free < 1 << 50
