"""What does the front-end cost, beside engines that cost nothing?

    ./dev build cpu manta manta_null_sse_server && .deps/venv/bin/python bench/frontend.py [tokens|ttft|idle ...]

tokens  500 streams: tokens per second of CPU time of the api process (engine: --executor fake without limit)
ttft    200 requests a second, Poisson: TTFT beside that of a server that does only HTTP and SSE with the same code
        (bench/null_sse_server.cc), the two in turns, so that a busy machine is busy for both
idle    10,000 streams that wait for their first token: resident memory of the api process

Prints one JSON line per question with the figure, its bound and the machine's load. Exits 1 when a bound is missed.
"""

import asyncio
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/product"))
from deployment import MANTA, Deployment  # noqa: E402

NULL_SERVER = MANTA.parent / "bench/manta_null_sse_server"
NUM_IDLE = 10_000


def cpu_seconds(pid):
    """Of all its threads, to the nanosecond."""
    return sum(int((task / "schedstat").read_text().split()[0])
               for task in pathlib.Path(f"/proc/{pid}/task").iterdir()) / 1e9


def resident_mb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def bench_serve(url, *flags):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([str(MANTA), "bench", "serve", "--url", url, "--model", "tiny", "--json", out.name,
                        *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
        return json.load(open(out.name))


def fake(*flags):
    return Deployment("--executor", "fake", "--served-model-name", "tiny", "--max-num-seqs", 512, *flags)


def report(question, ok, **figures):
    print(json.dumps({"bench": "frontend", "question": question, "ok": ok, **figures,
                      "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}))
    return ok


def tokens():
    num, out = 1500, 400
    with fake() as running:
        api = running.children("api")[0]
        bench_serve(running.url, "--num-prompts", 100, "--concurrency", 100, "--output-len", 20)  # warm
        before = cpu_seconds(api)
        got = bench_serve(running.url, "--num-prompts", num, "--concurrency", 500, "--input-len", 32,
                          "--output-len", out)
        cpu = cpu_seconds(api) - before
    assert got["output_tokens"] == num * out, got
    rate = got["output_tokens"] / cpu
    return report("tokens", rate >= 100_000, tokens_per_cpu_second=round(rate), at_least=100_000,
                  tokens=got["output_tokens"], api_cpu_s=round(cpu, 3))


def ttft():
    rounds, flags = 5, ("--num-prompts", 400, "--request-rate", 200, "--concurrency", 1000, "--input-len", 32,
                        "--output-len", 1)
    null_server = subprocess.Popen([str(NULL_SERVER)], stdout=subprocess.PIPE, text=True)
    try:
        null_url = null_server.stdout.readline().strip()
        with fake() as running:
            figures = {"null": [], "manta": []}
            for turn in range(rounds + 1):
                for name, url in (("null", null_url), ("manta", running.url)):
                    got = bench_serve(url, *flags, "--seed", turn)["ttft_s"]
                    if turn > 0:  # the first warms up
                        figures[name].append((got["p50"] * 1e3, got["p99"] * 1e3))
    finally:
        null_server.kill()
        null_server.wait()
    # The median over the turns of each percentile.
    p50 = {name: statistics.median(f[0] for f in rows) for name, rows in figures.items()}
    p99 = {name: statistics.median(f[1] for f in rows) for name, rows in figures.items()}
    bound99 = max(p99["null"] + 2, 2 * p99["null"])
    ok = p50["manta"] <= p50["null"] + 0.5 and p99["manta"] <= bound99
    return report("ttft", ok, p50_ms=round(p50["manta"], 3), null_p50_ms=round(p50["null"], 3),
                  p50_at_most_ms=round(p50["null"] + 0.5, 3), p99_ms=round(p99["manta"], 3),
                  null_p99_ms=round(p99["null"], 3), p99_at_most_ms=round(bound99, 3))


async def open_stream(port, room):
    body = b'{"prompt":[5],"max_tokens":4,"stream":true,"ignore_eos":true}'
    async with room:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    return reader, writer


async def hold_idle(url, api):
    room = asyncio.Semaphore(200)
    port = int(url.rsplit(":", 1)[1])
    streams = await asyncio.gather(*(open_stream(port, room) for _ in range(NUM_IDLE)))
    # All are in the server when it says so.
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /load HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
        if json.loads(answer[answer.index("{"):answer.rindex("}") + 1])["server_load"] >= NUM_IDLE:
            break
        await asyncio.sleep(0.1)
    memory = resident_mb(api)
    for _, writer in streams:
        writer.transport.abort()
    return memory


def idle():
    wanted = NUM_IDLE + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    # One token in 1000 s, and 512 of the streams run; the others wait in the engine.
    with fake("--fake-tokens-per-second", 0.001, "--enable-server-load-tracking", "--shutdown-timeout", 0) as running:
        memory = asyncio.run(hold_idle(running.url, running.children("api")[0]))
    return report("idle", memory < 500, streams=NUM_IDLE, api_rss_mb=round(memory, 1), below=500)


if __name__ == "__main__":
    questions = {"tokens": tokens, "ttft": ttft, "idle": idle}
    asked = sys.argv[1:] or list(questions)
    unknown = set(asked) - set(questions)
    if unknown:
        sys.exit(f"frontend: no such question: {', '.join(sorted(unknown))} ({', '.join(questions)})")
    sys.exit(0 if all([questions[name]() for name in asked]) else 1)
