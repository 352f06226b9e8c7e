"""What rearranging experts does to balance and to steps, with real processes and a skewed, repeated replay.

    .deps/venv/bin/python bench/eplb_balance.py [RANKS=4] [REQUESTS=48] [ROUNDS=24] [TOKENS=48]

The same requests (two texts, many times: some experts get most tokens) run round after round against three deployments:
one whose experts never move (min_gain 1) and one that rearranges every 48 steps, for steps under movement; and one whose
windows are eight rounds long, so that each sees the same traffic, for balance. Prints
  balancedness predicted by the policy for a window, and seen in the next one, and their ratio;
  p99 of the engines' steps while experts move all the time, against that of the first deployment; the same of the time
  between two tokens of a stream. Steps are counted in buckets, the p99 is interpolated in its own.
"""

import asyncio
import json
import math
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/product"))

import httpx
from deployment import Deployment, metric, wait_until

RANKS, REQUESTS, ROUNDS, TOKENS = (int(a) for a in (sys.argv[1:] + ["4", "48", "24", "48"][len(sys.argv) - 1:]))
TEXTS = ["What is 17 plus 25?", "Name three rivers."]
ALWAYS, SELDOM = 48, 8 * TOKENS  # steps between rearrangements


def flags(min_gain, interval):
    eplb = {"step_interval": interval, "window_size": interval, "num_redundant_experts": 2 * RANKS, "min_gain": min_gain}
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


def step_counts(url):
    """Steps of all engines up to each bound, seconds."""
    counts = {}
    for line in httpx.get(url + "/metrics").text.splitlines():
        if line.startswith("manta_engine_step_duration_seconds_bucket"):
            bound = float(line.split('le="')[1].split('"')[0].replace("+Inf", "inf"))
            counts[bound] = counts.get(bound, 0) + float(line.rsplit(" ", 1)[1])
    return counts


def p99_of_steps(before, after):
    """ms"""
    counts = [(bound, after[bound] - before[bound]) for bound in sorted(after)]
    wanted = 0.99 * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            return 1e3 * (low + (bound - low) * (wanted - below) / (count - below))
        low, below = bound, count


def measure(min_gain, interval):
    with Deployment(*flags(min_gain, interval)) as d:
        gaps = []
        asyncio.run(replay(d.url, []))  # warm
        before = step_counts(d.url)
        for _ in range(ROUNDS):
            asyncio.run(replay(d.url, gaps))
        rearranged = metric(d.url, "manta_eplb_rearrangements_total", engine=0)
        wait_until(lambda: step_counts(d.url)[math.inf] == metric(d.url, "manta_engine_steps_total"), "all are counted")
        steps = p99_of_steps(before, step_counts(d.url))
    decisions = re.findall(r"EPLB: balancedness ([\d.]+), ([\d.]+) after moving (\d+) of", d.text())
    return [g for _, g in gaps], steps, rearranged, [(float(now), float(then), int(n)) for now, then, n in decisions]


def main():
    still_gaps, still_steps, _, still = measure(1, ALWAYS)
    gaps, steps, rearranged, _ = measure(0, ALWAYS)
    _, _, _, decisions = measure(0, SELDOM)
    print(f"{RANKS} ranks, {REQUESTS} streams of {TOKENS} tokens, {ROUNDS} rounds")
    print(f"balancedness without movement: {sum(now for now, _, _ in still) / len(still):.3f}")
    for (_, predicted, moves), (seen, _, _) in zip(decisions, decisions[1:]):
        print(f"predicted {predicted:.3f} after {moves} moves, seen {seen:.3f}: {100 * (seen / predicted - 1):+.1f} %")
    print(f"p99 of steps: {steps:.1f} ms with {rearranged:.0f} rearrangements, {still_steps:.1f} ms without: "
          f"{steps / still_steps:.2f} x")
    print(f"p99 between tokens: {p99(gaps):.1f} ms with {rearranged:.0f} rearrangements, {p99(still_gaps):.1f} ms without: "
          f"{p99(gaps) / p99(still_gaps):.2f} x")


main()
