"""What rearranging experts does to balance and to steps, with real processes and a skewed, repeated replay.

    .deps/venv/bin/python bench/eplb_balance.py [RANKS=4] [REQUESTS=48] [ROUNDS=6]

The same requests (few texts, many times: some experts get most tokens) run round after round against two deployments,
one whose experts never move (min_gain 1), one that rearranges at every interval. Prints, of the second:
  balancedness predicted by the policy, and seen in the window after the move, and their ratio;
  p99 of the time between two tokens of a stream while experts move and while not, against the first deployment's.
"""

import asyncio
import json
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/product"))

import httpx
from deployment import Deployment, metric

RANKS, REQUESTS, ROUNDS = (int(a) for a in (sys.argv[1:] + ["4", "48", "6"][len(sys.argv) - 1:]))
TEXTS = ["What is 17 plus 25?", "Name three rivers."]
TOKENS, INTERVAL = 96, 48


def flags(min_gain):
    eplb = {"step_interval": INTERVAL, "window_size": INTERVAL, "num_redundant_experts": 2 * RANKS, "min_gain": min_gain}
    return ["-dp", RANKS, "--enable-expert-parallel", "--enable-eplb", "--eplb-config", json.dumps(eplb),
            "--max-num-seqs", 64, "--max-model-len", 512, "--no-enable-prefix-caching"]


async def replay(url, gaps):
    async def stream(client, i):
        body = {"prompt": TEXTS[i % len(TEXTS)], "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
                "temperature": 0}
        last = None
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.monotonic()
                if last is not None:
                    gaps.append((now, now - last))
                last = now

    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await asyncio.gather(*(stream(client, i) for i in range(REQUESTS)))


def p99(values):
    return sorted(values)[int(0.99 * len(values))] * 1e3


def measure(min_gain):
    with Deployment(*flags(min_gain)) as d:
        gaps = []
        asyncio.run(replay(d.url, []))  # warm
        for _ in range(ROUNDS):
            asyncio.run(replay(d.url, gaps))
        rearranged = metric(d.url, "manta_eplb_rearrangements_total", engine=0)
    decisions = re.findall(r"EPLB: balancedness ([\d.]+), ([\d.]+) after moving (\d+) of", d.text())
    return [g for _, g in gaps], rearranged, [(float(now), float(then), int(n)) for now, then, n in decisions]


def main():
    still_gaps, _, still = measure(1)
    gaps, rearranged, decisions = measure(0)
    print(f"{RANKS} ranks, {REQUESTS} streams of {TOKENS} tokens, {ROUNDS} rounds; {rearranged:.0f} rearrangements")
    print(f"balancedness without movement: {sum(now for now, _, _ in still) / len(still):.3f}")
    for (_, predicted, moves), (seen, _, _) in zip(decisions, decisions[1:]):
        print(f"predicted {predicted:.3f} after {moves} moves, seen {seen:.3f}: {100 * (seen / predicted - 1):+.1f} %")
    print(f"p99 between tokens: {p99(gaps):.1f} ms with movement, {p99(still_gaps):.1f} ms without: "
          f"{p99(gaps) / p99(still_gaps):.2f} x")


main()
