"""Work in threads: bounded, left by whoever goes away, and never left behind by an error of any kind."""

import asyncio
import gc
import threading
import weakref

import pytest

from runtime.serve.daemon import Workers


class Held:
    """Something large that work holds."""


def test_work_that_nobody_waits_for_any_more_is_never_begun_and_not_kept():
    """A pool's queue would keep it until a thread is free: with its body of 64 MiB."""

    async def run():
        workers, go, begun = Workers(2, "test"), threading.Event(), []
        stuck = [asyncio.create_task(workers.run(go.wait)) for _ in range(2)]
        kept = []
        for _ in range(5):
            held = Held()
            kept.append(weakref.ref(held))
            waiting = asyncio.create_task(workers.run(lambda held=held: begun.append(held)))
            del held
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            del waiting
        gc.collect()
        assert sum(reference() is not None for reference in kept) <= 1  # asyncio keeps the latest a while
        stuck[0].cancel()  # its thread goes on, and keeps its place
        later = asyncio.create_task(workers.run(lambda: "later"))
        await asyncio.sleep(0.05)
        assert not later.done()
        go.set()
        assert await later == "later"
        assert await stuck[1] is True
        assert begun == []

    asyncio.run(run())


class PanicError(BaseException):
    """As a library in Rust raises."""


def test_every_error_comes_back_and_frees_the_thread():
    def fail(error):
        raise error

    async def run():
        workers = Workers(1, "test")
        for error in (ValueError("x"), PanicError("y")):
            with pytest.raises(type(error)):
                await workers.run(lambda error=error: fail(error))
        assert await workers.run(lambda: 3) == 3

    asyncio.run(run())
