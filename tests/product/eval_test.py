"""The prompts of tests/golden/eval.jsonl through HTTP, many at once, give the tokens that the engine gives when it is
called directly."""

import asyncio
import json
import subprocess

import httpx
import pytest

from deployment import MANTA, ROOT, Deployment

EVAL_TOKENS = MANTA.parent / "tests/exec/manta_eval_tokens"
MAX_TOKENS = 64


def prompts(count):
    """Every n-th line: the same as eval_prompts.h takes."""
    lines = (ROOT / "tests/golden/eval.jsonl").read_text().splitlines()
    return [json.loads(lines[i * len(lines) // count]) for i in range(count)]


def direct_tokens(count):
    done = subprocess.run([str(EVAL_TOKENS), str(count), str(MAX_TOKENS)], cwd=ROOT, text=True, timeout=600,
                          stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def ask(client, room, line):
    fields = {"temperature": 0, "max_tokens": MAX_TOKENS, "return_token_ids": True}
    if "messages" in line:
        path, fields["messages"] = "/v1/chat/completions", line["messages"]
        if line.get("tools"):
            fields["tools"] = line["tools"]
    else:
        # The tokenizer adds none (add_bos_token); the prompts were made with one.
        path, fields["prompt"] = "/v1/completions", "<｜begin▁of▁sentence｜>" + line["prompt"]
    async with room:
        answer = await client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


async def ask_all(url, lines, concurrency):
    room = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        return await asyncio.gather(*(ask(client, room, line) for line in lines))


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_http_gives_the_engines_tokens(count):
    lines = prompts(count)
    direct = direct_tokens(count)
    assert len(direct) == count
    with Deployment("--generation-config", "vllm", "--api-server-count", 2, "--max-num-seqs", 32,
                    "--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v3") as running:
        served = asyncio.run(ask_all(running.url, lines, 24))
    different = [i for i in range(count) if served[i] != direct[i]]
    assert not different, f"{len(different)} of {count}, first {lines[different[0]]}"
