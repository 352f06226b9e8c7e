"""Kills processes under thousands of streams: every client must reach an end, and nothing may be left behind.

Scripted tokens (`--executor fake`), everything else real. The clients are raw sockets: ten thousand of them must cost
less than the server does.
"""

import asyncio
import gc
import json
import os
import pathlib
import resource
import time

import pytest

from deployment import Deployment

PATIENCE_S = 2.0  # from the kill to the end of a stream that should have ended by then


class Stream(asyncio.Protocol):
    """One streaming completion; knows when it last got bytes and how it ended."""

    def __init__(self, request):
        self.request = request
        self.ended = asyncio.get_running_loop().create_future()
        self.events = 0
        self.last = time.monotonic()
        self.tail = b""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.last = time.monotonic()
        self.events += data.count(b"data: ")
        self.tail = (self.tail + data)[-4096:]
        if b"data: [DONE]" in self.tail or b"HTTP/1.1 5" in self.tail:
            self.finish("error" if b'"error"' in self.tail or b"HTTP/1.1 5" in self.tail else "done")
            self.transport.close()

    def connection_lost(self, exc):
        self.finish("closed")

    def finish(self, how):
        if not self.ended.done():
            self.ended.set_result(how)


def request_bytes(max_tokens):
    body = json.dumps({"prompt": [5, 6, 7, 8], "max_tokens": max_tokens, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def open_streams(url, n, max_tokens):
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    request = request_bytes(max_tokens)
    streams = []
    for begin in range(0, n, 200):  # in bursts, below the listen backlog
        batch = await asyncio.gather(
            *(loop.create_connection(lambda: Stream(request), host, port) for _ in range(begin, min(begin + 200, n))))
        streams += [protocol for _, protocol in batch]
    return streams


async def wait_until_all_stream(streams):
    while any(s.events == 0 and not s.ended.done() for s in streams):
        await asyncio.sleep(0.05)


def leftovers(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def rank_load(d):
    """(requests that run or wait, blocks in use) over all engines, from /metrics."""
    import urllib.request
    text = urllib.request.urlopen(d.url + "/metrics", timeout=10).read().decode()
    values = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0, "vllm:kv_cache_usage_perc": 0.0}
    for line in text.splitlines():
        name = line.split("{")[0]
        if name in values and "{" in line:
            values[name] += float(line.rsplit(" ", 1)[1])
    return values


async def idle(d, timeout=20):
    deadline = time.monotonic() + timeout
    while True:
        load = rank_load(d)
        if not any(load.values()):
            return
        assert time.monotonic() < deadline, f"not idle: {load}"
        await asyncio.sleep(0.1)


def shm_and_sockets():
    return sorted(p.name for p in pathlib.Path("/dev/shm").iterdir() if "manta" in p.name)


def flags(n):
    # Room for every stream on one engine: a survivor takes over all of them at once.
    return ["--executor", "fake", "--fake-tokens-per-second", "4", "-dp", "2", "--max-num-seqs", n,
            "--max-num-batched-tokens", 1 << 20, "--num-gpu-blocks-override", 2 * n + 16, "--max-model-len", 64,
            "--max-num-queued-reqs", 2 * n]


def sizes():
    return [300, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    gc.collect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("n", sizes())
def test_engine_killed(n):
    """The other engine takes over: every stream ends well, with every token."""
    max_tokens = 24  # 6 s at the fake pace

    async def run(d):
        streams = await open_streams(d.url, n, max_tokens)
        await wait_until_all_stream(streams)
        d.kill("engine")
        killed = time.monotonic()
        ends = await asyncio.gather(*(s.ended for s in streams))
        assert set(ends) == {"done"}, {e: ends.count(e) for e in set(ends)}
        # A chunk per token, the finish and [DONE].
        short = [s.events for s in streams if s.events < max_tokens]
        assert not short, f"{len(short)} streams lost tokens: {short[:5]}"
        assert time.monotonic() - killed < 24 / 4 + PATIENCE_S + n / 2000
        await idle(d)

    with Deployment(*flags(n)) as d:
        first = d.children("engine")
        asyncio.run(run(d))
        now = d.children("engine")
        assert len(now) == 2 and set(now) != set(first), "the dead engine was started again"
        every = now + d.children("api") + d.children("coordinator")
    assert leftovers(every) == []
    assert shm_and_sockets() == []


@pytest.mark.parametrize("n", sizes())
def test_api_killed(n):
    """Its clients see their connections end at once; the engines drop the orphaned work; a new api serves."""

    async def run(d):
        streams = await open_streams(d.url, n, 60)
        await wait_until_all_stream(streams)
        engines = d.children("engine")
        d.kill("api")
        killed = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*(s.ended for s in streams)), PATIENCE_S + n / 2000)
        assert time.monotonic() - killed < PATIENCE_S + n / 2000
        # Back on the same port, on the same engines, with nothing of before left in them.
        deadline = time.monotonic() + 20
        while True:
            try:
                again = await open_streams(d.url, 1, 4)
                if await again[0].ended == "done":
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, "the api did not come back"
            await asyncio.sleep(0.1)
        await idle(d)
        assert d.children("engine") == engines

    with Deployment(*flags(n)) as d:
        # Port 0 would give the new process another port; ask for the one it drew.
        port = d.url.rsplit(":", 1)[1]
    with Deployment(*flags(n), "--port", port) as d:
        asyncio.run(run(d))


def test_coordinator_killed():
    async def run(d):
        streams = await open_streams(d.url, 100, 24)
        await wait_until_all_stream(streams)
        d.kill("coordinator")
        ends = await asyncio.gather(*(s.ended for s in streams))
        assert set(ends) == {"done"}
        await idle(d)

    with Deployment(*flags(300)) as d:
        asyncio.run(run(d))


def test_parent_killed_takes_everything_along():
    d = Deployment(*flags(300))
    d.__enter__()
    children = d.children("engine") + d.children("api") + d.children("coordinator")
    assert len(children) == 4
    d.process.kill()
    d.process.wait()
    deadline = time.monotonic() + 10
    while leftovers(children):
        assert time.monotonic() < deadline, f"still alive: {leftovers(children)}"
        time.sleep(0.05)


def test_sigterm_finishes_running_streams():
    async def run(d):
        streams = await open_streams(d.url, 50, 16)
        await wait_until_all_stream(streams)
        d.terminate()
        ends = await asyncio.gather(*(s.ended for s in streams))
        assert set(ends) == {"done"}
        assert all(s.events >= 16 for s in streams)

    with Deployment(*flags(300)) as d:
        asyncio.run(run(d))


@pytest.mark.slow
def test_frozen_engine_is_named_and_replaced():
    """SIGSTOP: the sockets stay open, only the heartbeat stops. Named within the deadline, streams go on elsewhere."""
    import signal

    async def run(d):
        streams = await open_streams(d.url, 50, 60)
        await wait_until_all_stream(streams)
        frozen = d.kill("engine", sig=signal.SIGSTOP)
        ends = await asyncio.gather(*(s.ended for s in streams))
        assert set(ends) == {"done"}
        named = [line for line in d.log if f"pid {frozen}" in line and "no heartbeat" in line]
        assert named, "".join(d.log[-20:])
        await idle(d)
        assert len(d.children("engine")) == 2

    with Deployment(*flags(300)) as d:
        asyncio.run(run(d))
