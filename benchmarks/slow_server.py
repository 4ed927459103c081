"""A chat server that answers every completion after a fixed time, and counts what it was sent.

    python benchmarks/slow_server.py 0.05        # prints its port

One thread and no parsing beyond HTTP's framing, so that it is never what a benchmark measures. `GET /phase`
tells of the completions since the last time it was asked: their number, and the seconds from the first one's arrival
to the last one's reply.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
COMPLETION = json.dumps(
    {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": '{"answer": 70}'}, "finish_reason": "stop"}
        ],
        "model": "slow",
        "usage": {"prompt_tokens": 100, "completion_tokens": 8, "total_tokens": 108},
    }
).encode()


@dataclass
class Phase:
    """What has been sent since the last `GET /phase`; times are of `time.perf_counter`."""

    requests: int = 0
    first: float = 0.0
    last: float = 0.0


def http_reply(status: bytes, body: bytes) -> bytes:
    """A whole HTTP reply."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class SlowServer:
    """Serves connections and keeps the Phase."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.phase = Phase()
        self.completion = http_reply(b"200 OK", COMPLETION)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the client closes it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = CONTENT_LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(await self.reply(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def reply(self, head: bytes) -> bytes:
        """The reply to one request."""
        if head.startswith(b"POST"):
            now, phase = time.perf_counter(), self.phase
            phase.first = phase.first or now
            phase.requests += 1
            await asyncio.sleep(self.delay)
            phase.last = time.perf_counter()
            return self.completion
        if head.startswith(b"GET /phase"):
            phase, self.phase = self.phase, Phase()
            told = {"requests": phase.requests, "seconds": phase.last - phase.first}
            return http_reply(b"200 OK", json.dumps(told).encode())
        return http_reply(b"404 Not Found", b"{}")


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(SlowServer(float(sys.argv[1])).connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
