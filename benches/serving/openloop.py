"""Load that does not wait for answers: so many requests a second, whatever the server makes of them.

    python openloop.py PORT PATH BODY HEADERS.json RATE SECONDS

Prints one line of JSON: latencies by status, from the moment that a request was due, and how late this program itself
was. Connections are kept; a request takes a free one or opens another.
"""

import asyncio
import collections
import json
import pathlib
import sys
import time

try:
    import uvloop
except ImportError:
    uvloop = asyncio


CONNECTIONS_MAX = 4000


class Connection(asyncio.Protocol):
    """One connection with at most one request on its way."""

    def __init__(self, pool):
        self.pool, self.begun, self.buffer = pool, None, b""

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, due):
        self.begun = due
        self.transport.write(self.pool.request)

    def data_received(self, data):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self.pool.done(int(head[9:12]), self.begun)
        self.buffer, self.begun = b"", None
        self.pool.free.append(self)

    def connection_lost(self, error):
        self.pool.open -= 1
        if self.begun is not None:
            self.pool.done(0, self.begun)
        elif self in self.pool.free:
            self.pool.free.remove(self)


class Pool:
    def __init__(self, port, request):
        self.port, self.request = port, request
        self.free, self.open, self.waiting = collections.deque(), 0, 0
        self.latencies = collections.defaultdict(list)

    def done(self, status, due):
        self.waiting -= 1
        self.latencies[status].append(time.perf_counter() - due)

    async def connect(self, due):
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), "127.0.0.1", self.port)
        except OSError:
            self.open -= 1
            self.done(0, due)
            return
        connection.ask(due)

    def ask(self, due):
        self.waiting += 1
        if self.free:
            self.free.pop().ask(due)
        elif self.open >= CONNECTIONS_MAX:
            self.done(-1, due)  # This client can do no more: the result must not hide it.
        else:
            self.open += 1
            task = asyncio.ensure_future(self.connect(due))
            task.add_done_callback(lambda t: t.exception())


async def drive(port, request, rate, seconds):
    pool = Pool(port, request)
    begun, sent, late, connections = time.perf_counter(), 0, [], 0
    while sent < rate * seconds:
        now = time.perf_counter()
        late.append(now - (begun + sent / rate))
        while sent < rate * seconds and begun + sent / rate <= now:
            pool.ask(begun + sent / rate)
            sent += 1
        connections = max(connections, pool.open)
        await asyncio.sleep(max(0.0005, begun + sent / rate - time.perf_counter()))
    took = time.perf_counter() - begun
    for _ in range(600):
        if not pool.waiting:
            break
        await asyncio.sleep(0.05)
    return {"sent": sent, "seconds": took, "unanswered": pool.waiting, "connections": connections,
            "late_ms": summary(late), "statuses": {str(s): summary(v) for s, v in pool.latencies.items()}}


def summary(seconds):
    ordered = sorted(seconds)
    at = lambda q: ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3  # noqa: E731
    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": ordered[-1] * 1e3}


def main():
    port, path, body, headers, rate, seconds = sys.argv[1:]
    body = pathlib.Path(body).read_bytes()
    lines = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body))} | json.loads(pathlib.Path(headers).read_text())
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
    loop = uvloop.new_event_loop()
    print(json.dumps(loop.run_until_complete(drive(int(port), head.encode() + body, float(rate), float(seconds)))))


if __name__ == "__main__":
    main()
