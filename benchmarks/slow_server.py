"""A chat server that answers every completion after a fixed time, and counts what it was sent.

    python benchmarks/slow_server.py 0.05                        # after 50 ms; prints its port
    python benchmarks/slow_server.py 0.05 --size 82000           # with so many characters
    python benchmarks/slow_server.py 0.05 --tokens 400 --gap 0.01   # or one token after the other

One thread and no parsing beyond HTTP's framing, so that it is never what a benchmark measures. A request that asks for
a stream gets one. `GET /phase` tells of the completions since the last time it was asked: their number, and the seconds
from the first one's arrival to the last one's reply.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
USAGE = {"prompt_tokens": 100, "completion_tokens": 8, "total_tokens": 108}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = 400  # characters of a long response that come in one event


@dataclass
class Phase:
    """The replies sent since the last `GET /phase`; times are of `time.perf_counter`."""

    requests: int = 0
    first: float = 0.0
    last: float = 0.0


def http_reply(status: bytes, body: bytes) -> bytes:
    """A whole HTTP reply."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def chunk(data: bytes = b"") -> bytes:
    """A chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(choices: list[object], **more: object) -> bytes:
    """The chunk of a server-sent event, about as long as those of llama-server."""
    known = {"created": 1795193309, "id": "chatcmpl-" + 32 * "x", "model": "slow", "object": "chat.completion.chunk"}
    return chunk(b"data: " + json.dumps({"choices": choices, **known, **more}).encode() + b"\n\n")


def events(text: str) -> Iterator[bytes]:
    """The chunks of a stream with this text, as llama-server orders them."""
    yield event([{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])
    for start in range(0, len(text), PIECE):
        delta = {"content": text[start : start + PIECE]}
        yield event([{"index": 0, "delta": delta, "finish_reason": None}])
    yield event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    yield event([], usage=USAGE)
    yield chunk(b"data: [DONE]\n\n")
    yield chunk()


class SlowServer:
    """Serves connections and keeps the Phase."""

    def __init__(self, delay: float, size: int, tokens: int, gap: float) -> None:
        self.delay, self.gap = delay, gap
        self.phase = Phase()
        text = "So we go on. " * (size // 13) + '{"answer": 70}'
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self.whole = http_reply(b"200 OK", json.dumps({"choices": choices, "model": "slow", "usage": USAGE}).encode())
        self.stream = STREAM_HEAD + b"".join(events(text))
        self.pieces = [
            event([{"index": 0, "delta": {"content": f" {n}"}, "finish_reason": None}]) for n in range(tokens)
        ]

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the client closes it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = CONTENT_LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"POST"):
                    await self.complete(writer, b'"stream": true' in body)
                else:
                    writer.write(self.answer(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def complete(self, writer: asyncio.StreamWriter, streamed: bool) -> None:
        """Answer one completion request."""
        now, phase = time.perf_counter(), self.phase
        phase.first = phase.first or now
        phase.requests += 1
        await asyncio.sleep(self.delay)
        if streamed and self.pieces:
            writer.write(STREAM_HEAD)
            started = time.perf_counter()
            for number, piece in enumerate(self.pieces):
                writer.write(piece)
                await asyncio.sleep(max(0.0, started + self.gap * (number + 1) - time.perf_counter()))
            writer.write(self.stream.removeprefix(STREAM_HEAD))
        else:
            writer.write(self.stream if streamed else self.whole)
        phase.last = time.perf_counter()

    def answer(self, head: bytes) -> bytes:
        """The reply to a GET."""
        if head.startswith(b"GET /phase"):
            phase, self.phase = self.phase, Phase()
            told = {"requests": phase.requests, "seconds": phase.last - phase.first}
            return http_reply(b"200 OK", json.dumps(told).encode())
        return http_reply(b"404 Not Found", b"{}")


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A chat server that takes its time.")
    parser.add_argument("delay", type=float, help="seconds until it begins to answer")
    parser.add_argument("--size", type=int, default=0, help="characters of each answer")
    parser.add_argument("--tokens", type=int, default=0, help="pieces of each stream, with --gap between them")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between two pieces")
    args = parser.parse_args()
    slow = SlowServer(args.delay, args.size, args.tokens, args.gap)
    server = await asyncio.start_server(slow.connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
