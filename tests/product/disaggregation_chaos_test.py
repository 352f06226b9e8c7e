"""Prefill and decode ranks die, freeze and come back under load, and clients go away: everybody who stayed gets the
tokens of a quiet day, and afterwards nothing is held any more."""

import asyncio
import json
import os
import pathlib
import random
import signal

import httpx
import pytest

from deployment import Up, metric, wait_until, write_yaml

CONCURRENCY = 64
CACHE_MIB = 32
# What a process may grow by once it is warm. An engine that was replaced lately still fills its cache and its
# activations (86 MiB) for the first time.
LEVEL_MIB = {"engine": CACHE_MIB + 86 + 16, "api": 16, "router": 16, "coordinator": 16}
SHARED = "A story that many requests begin with, long enough to be more than one block of the cache. " * 6


def requests():
    draw = random.Random(3)
    for i in range(50):
        prompt = (SHARED if i % 4 == 0 else "") + " ".join(draw.choice("abcdefgh") * draw.randrange(1, 9) for _ in range(60))
        yield {"prompt": prompt + str(i), "max_tokens": draw.randrange(1, 64), "temperature": i % 2, "seed": i,
               "ignore_eos": True, "return_token_ids": True, "stream": True}


def pd_file(folder, connector):
    def change(args, file):
        for role in ("prefill_config", "decode_config"):
            args[role]["engine_kwargs"]["kv_transfer_config"] |= {
                "kv_connector": connector, "kv_connector_extra_config": {"kv_lease_duration": 1}}
            args[role]["engine_kwargs"] |= {"max_num_batched_tokens": 256, "rank_deadline_s": 1.5, "block_size": 32,
                                            "kv_cache_memory_bytes": CACHE_MIB << 20}
            args[role]["runtime_env"] = {"env_vars": {"VLLM_NIXL_ABORT_REQUEST_TIMEOUT": "2"}}

    return write_yaml(folder, change)


async def ask(client, body, leave_after=None):
    """The tokens; None for a client that left after so many events."""
    tokens, events = [], 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return tokens
            if not line.startswith("data: "):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            tokens += (chunk["choices"][0].get("token_ids") or []) if chunk["choices"] else []
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
    raise AssertionError(f"the stream of {body['prompt'][:40]!r} ended after {len(tokens)} tokens")


async def faults(up, done, draw):
    """One at a time, a second or so apart: a rank of either kind killed, or stopped for longer than a lease."""
    kinds = [(role, kind) for role in ("prefill", "decode") for kind in ("kill", "stop", "stop past the lease")]
    count = 0
    while not done.is_set():
        role, kind = kinds[count % len(kinds)]
        pid = draw.choice([p for p in up.children("engine") if f"--role\0{role}" in command_of(p)])
        if kind == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.3 if kind == "stop" else 2.2)  # how long the fault lasts
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # it was replaced
        count += 1
        await asyncio.sleep(draw.uniform(0.5, 1.5))
    return count


def command_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def under_faults(up, bodies, expected, n):
    draw = random.Random(7)
    done, room = asyncio.Event(), asyncio.Semaphore(CONCURRENCY)
    different = []

    async def one(client, i):
        body = bodies[i % len(bodies)]
        leave_after = draw.randrange(0, 20) + 1 if draw.random() < 0.2 else None
        async with room:
            tokens = await ask(client, body, leave_after)
        if tokens is not None and tokens != expected[i % len(bodies)]:
            different.append((i, tokens))

    async with httpx.AsyncClient(base_url=up.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        trouble = asyncio.create_task(faults(up, done, draw))
        await asyncio.gather(*(one(client, i) for i in range(n)))
        done.set()
        num_faults = await trouble
    assert not different, f"{len(different)} of {n} differ, first {different[0]}"
    return num_faults


def descriptors(up):
    kinds = ("engine", "api", "router", "coordinator")
    return {kind: sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in up.children(kind)) for kind in kinds}


def resident_mib(up):
    """Of each process, by pid: one that died under the faults has a successor with another pid."""
    sizes = {}
    for kind in ("engine", "api", "router", "coordinator"):
        for pid in up.children(kind):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            sizes[kind, pid] = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return sizes


def nothing_is_held(url):
    names = ("manta_kv_leases", "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(metric(url, name) == 0 for name in names)


@pytest.mark.parametrize("connector", ["SharedMemoryConnector", "NixlConnector"])
@pytest.mark.parametrize("n", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_nothing_is_lost(tmp_path, connector, n):
    bodies = list(requests())
    with Up(pd_file(tmp_path, connector)) as up:

        async def quiet():
            async with httpx.AsyncClient(base_url=up.url, timeout=300) as client:
                return [await ask(client, body) for body in bodies]

        expected = asyncio.run(quiet())
        before = descriptors(up)
        # In halves: what the first one fills (arenas, tables) the second one finds there.
        assert asyncio.run(under_faults(up, bodies, expected, n // 2)) > 0
        halfway = resident_mib(up)
        assert asyncio.run(under_faults(up, bodies, expected, n // 2)) > 0
        wait_until(lambda: httpx.get(up.url + "/health").status_code == 200, "all ranks are back")
        wait_until(lambda: nothing_is_held(up.url), "blocks, leases and requests are given back")
        assert asyncio.run(quiet()) == expected
        wait_until(lambda: descriptors(up)["api"] <= before["api"] + 8, "sockets are closed")
        assert descriptors(up)["router"] <= before["router"] + 8
        grown = {who: size - halfway[who] for who, size in resident_mib(up).items() if who in halfway}
        too_much = {who: mib for who, mib in grown.items() if mib > LEVEL_MIB[who[0]]}
        assert not too_much, f"MiB that processes grew by under the second half of the requests: {too_much}"
