# SPDX-License-Identifier: Apache-2.0
"""A slow link: a TCP proxy that passes bytes at a given rate, each after a delay. Connections share the rate."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

PIECE = 16 << 10
AHEAD = 64  # pieces in flight: 1 MiB, more than any link here holds


class _Direction:
    """One direction of the link. Times are the loop's, seconds."""

    def __init__(self, rate: float, delay: float) -> None:
        self._rate = rate
        self._delay = delay
        self._free = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When bytes that are sent now have all arrived."""
        self._free = max(self._free, now) + size / self._rate
        return self._free + self._delay


class ShapedProxy:
    """A proxy for a port of this machine. Use it as a context manager; clients connect to `port`.

    rate   bytes per second, each way
    delay  seconds one way: half a round trip
    """

    def __init__(self, target: int, *, rate: float, delay: float) -> None:
        self._target = target
        self._up, self._down = _Direction(rate, delay), _Direction(rate, delay)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shaped-link", daemon=True)
        self.port = 0
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(_ended(left))
        self._loop.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        # asyncio's own callback for a server's tasks cannot handle a cancelled one
        ended = contextlib.suppress(asyncio.CancelledError)
        with contextlib.closing(writer), contextlib.closing(far_writer), ended:
            await asyncio.gather(
                self._pump(reader, far_writer, self._up),
                self._pump(far_reader, writer, self._down),
                return_exceptions=True,
            )

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Direction) -> None:
        """Pass bytes from one end to the other, in order; when one end closes, the other is closed."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)
        deliver = asyncio.ensure_future(self._deliver(queue, writer))
        try:
            while data := await reader.read(PIECE):
                await queue.put((link.arrival(self._loop.time(), len(data)), data))
        except OSError:
            pass
        await queue.put((link.arrival(self._loop.time(), 0), b""))
        await deliver

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            at, data = await queue.get()
            await asyncio.sleep(max(at - self._loop.time(), 0))
            if not data:
                break
            writer.write(data)
            with contextlib.suppress(OSError):
                await writer.drain()
        writer.close()


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for what was cancelled: a loop closed before that leaves sockets open and complains."""
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # sockets are closed in the loop's next iteration
