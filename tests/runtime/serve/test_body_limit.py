"""What one large body costs the requests beside it."""

import asyncio
import json

from runtime.serve.middleware.body_limit import BodyLimit, BodyLimits

LIMITS = BodyLimits(one=100, all=150, seconds=10, linger_seconds=10)


async def echo(scope, receive, send):
    """Answer with the number of bytes of the body."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(len(body)).encode()})


class Client:
    """A request whose body comes in pieces."""

    def __init__(self, limit):
        self._pieces, self._sent = asyncio.Queue(), []
        self._task = asyncio.create_task(limit({"type": "http", "headers": []}, self._pieces.get, self._sent_by_server))

    async def _sent_by_server(self, message):
        self._sent.append(message)

    async def send(self, size, *, more):
        self._pieces.put_nowait({"type": "http.request", "body": b" " * size, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    async def status(self):
        await asyncio.wait_for(self._task, 5)
        return self._sent[0]["status"]


def test_a_request_without_body_passes_beside_large_ones():
    async def run():
        limit = BodyLimit(echo, LIMITS)
        large = [Client(limit) for _ in range(3)]
        for client, size in zip(large, (75, 75, 1), strict=True):
            await client.send(size, more=True)
        health = Client(limit)
        await health.send(0, more=False)
        assert await health.status() == 200
        for client in large:
            await client.send(0, more=False)
        assert [await client.status() for client in large] == [200, 200, 429]

    asyncio.run(run())


def test_a_refused_body_is_not_counted_while_its_rest_is_dropped():
    async def run():
        limit = BodyLimit(echo, LIMITS)
        refused, other = Client(limit), Client(limit)
        await refused.send(101, more=True)
        await other.send(90, more=False)
        assert await other.status() == 200
        await refused.send(1, more=False)
        assert await refused.status() == 413

    asyncio.run(run())
