"""How long streams stand still when an expert-parallel rank dies and nobody replaces it, with and without redundant
experts, with real processes. The baseline is the longest pause of the same streams without a death.

    .deps/venv/bin/python bench/shrink_stall.py [RANKS=4] [STREAMS=32]
"""

import asyncio
import json
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/product"))

import httpx
from deployment import Deployment

RANKS, STREAMS = (int(a) for a in (sys.argv[1:] + ["4", "32"][len(sys.argv) - 1:]))
EPLB = ["--enable-eplb", "--eplb-config", json.dumps({"num_redundant_experts": 16})]


async def longest_pauses(d, kill):
    """Of each stream, seconds."""
    flowing = asyncio.Semaphore(0)

    async def stream(client, i):
        body = {"prompt": f"Question {i}: what is {i} plus {i + 1}?", "max_tokens": 200, "ignore_eos": True,
                "stream": True, "temperature": 0}
        longest, last = 0, None
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic()
                if last is None:
                    flowing.release()
                else:
                    longest = max(longest, now - last)
                last = now
        return longest

    async with httpx.AsyncClient(base_url=d.url, timeout=120, limits=httpx.Limits(max_connections=STREAMS)) as client:
        tasks = [asyncio.ensure_future(stream(client, i)) for i in range(STREAMS)]
        for _ in tasks:
            await flowing.acquire()
        if kill:
            os.kill(d.process.pid, signal.SIGSTOP)  # who would start another one
            d.kill("engine", 1)
        pauses = await asyncio.gather(*tasks)
    if kill:
        os.kill(d.process.pid, signal.SIGCONT)
    return max(pauses)


def main():
    for name, more in (("no redundant experts", []), ("16 redundant experts", EPLB)):
        with Deployment("-dp", RANKS, "--enable-expert-parallel", "--max-num-seqs", 64, "--max-model-len", 512, *more) as d:
            asyncio.run(longest_pauses(d, False))  # warm
            usual = asyncio.run(longest_pauses(d, False))
            killed = asyncio.run(longest_pauses(d, True))
        print(f"{name}: longest pause {killed:.2f} s (shrink_after_s 1), {usual:.2f} s without a death")


main()
