#!/usr/bin/env python3
"""`manta router` over a bare epoll relay, both before the same server, same requests, same run, alternating.

    ninja -C build/cpu manta manta_epoll_relay
    python bench/router_bench.py [--rounds 3]

The server is a deployment of scripted tokens at 250 a second and stream, the clients are `manta bench serve`. Both relays run on one thread; what they
cost is their CPU time, so that a busy machine does not decide. Prints one JSON line per question:

    stream      CPU time per streamed chunk (64 streams of 256 chunks): relay over router; at least 0.6 is wanted
    requests    requests per second of CPU, one token each: the router's, at least 5,000 is wanted, and the relay's
    latency     first-token times (ms) with 4 clients: the router's p99 over the relay's; at most 1 ms more is wanted
"""
import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[1]
BUILD = REPO / "build/cpu"
MODEL = "models/tiny-v3"


class Process:
    def __init__(self, *command):
        self.lines = []
        self.process = subprocess.Popen([str(c) for c in command], cwd=REPO, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def wait_url(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.lines:
                if found := re.search(r"API\s+(http://\S+)/v1", line):
                    return found.group(1)
            time.sleep(0.05)
        sys.exit("not ready: " + "".join(self.lines[-20:]))

    def cpu_seconds(self):
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9  # exact, unlike ticks

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def coordinator_of(server):
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == server.process.pid and b"--coordinator" in words:
            return words[words.index(b"--coordinator") + 1].decode()
    sys.exit("no coordinator")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def load(url, **options):
    """One run of `manta bench serve`; its figures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        flags = [f for key, value in options.items() for f in ("--" + key.replace("_", "-"), str(value))]
        done = subprocess.run([BUILD / "manta", "bench", "serve", "--url", url, "--vocab-size", "1000", "--json", out.name,
                               *flags], cwd=REPO, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
        return json.load(open(out.name))


def alternate(rounds, sides, **options):
    """Per side: a list of (CPU seconds, figures)."""
    results = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (process, url) in sides.items():
            before = process.cpu_seconds()
            figures = load(url, **options)
            results[name].append((process.cpu_seconds() - before, figures))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    server = Process(BUILD / "manta", "serve", MODEL, "--host", "127.0.0.1", "--port", "0", "--executor", "fake",
                     "--max-num-seqs", 256, "--max-model-len", 1024, "--max-num-batched-tokens", 8192,
                     "--fake-tokens-per-second", 250)
    server_url = server.wait_url()
    port = free_port()
    relay = Process(BUILD / "bench/manta_epoll_relay", port, server_url.rsplit(":", 1)[1])
    router = Process(BUILD / "manta", "router", MODEL, "--host", "127.0.0.1", "--port", "0", "--decode-endpoints",
                     coordinator_of(server))
    sides = {"relay": (relay, f"http://127.0.0.1:{port}"), "router": (router, router.wait_url())}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True).stdout.strip()
    same = {"commit": commit, "rounds": args.rounds, "cores": os.cpu_count()}
    try:
        shape = {"num_prompts": 256, "concurrency": 64, "input_len": 16, "output_len": 256}
        runs = alternate(args.rounds, sides, **shape)
        cpu = {name: statistics.median(s for s, _ in values) for name, values in runs.items()}
        chunks = shape["num_prompts"] * shape["output_len"]
        print(json.dumps({"question": "stream", **shape, "us_per_chunk": {n: round(1e6 * s / chunks, 2) for n, s in cpu.items()},
                          "ratio": round(cpu["relay"] / cpu["router"], 3), **same}), flush=True)
        shape = {"num_prompts": 4000, "concurrency": 128, "input_len": 16, "output_len": 1}
        runs = alternate(args.rounds, sides, **shape)
        rate = {name: round(shape["num_prompts"] / statistics.median(s for s, _ in values)) for name, values in runs.items()}
        print(json.dumps({"question": "requests", **shape, "per_cpu_second": rate, **same}), flush=True)
        shape = {"num_prompts": 2000, "concurrency": 4, "input_len": 16, "output_len": 1}
        runs = alternate(args.rounds, sides, **shape)
        ms = {name: {p: round(1e3 * statistics.median(f["ttft_s"][p] for _, f in values), 3) for p in ("p50", "p99")}
              for name, values in runs.items()}
        print(json.dumps({"question": "latency", **shape, "ttft_ms": ms,
                          "p99_added_ms": round(ms["router"]["p99"] - ms["relay"]["p99"], 3), **same}), flush=True)
    finally:
        for process in (router, relay, server):
            process.stop()


if __name__ == "__main__":
    main()
