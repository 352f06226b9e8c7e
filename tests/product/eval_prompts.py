"""The prompts of tests/golden/eval.jsonl as requests, and many requests at once."""

import asyncio
import json

import httpx

from deployment import ROOT


def prompts(count):
    """Every n-th line: the same as eval_prompts.h takes."""
    lines = (ROOT / "tests/golden/eval.jsonl").read_text().splitlines()
    return [json.loads(lines[i * len(lines) // count]) for i in range(count)]


def request(line, **fields):
    """(path, body)"""
    body = {"temperature": 0, "max_tokens": 64, "return_token_ids": True, **fields}
    if "messages" not in line:
        # The tokenizer adds none (add_bos_token); the prompts were made with one.
        return "/v1/completions", {**body, "prompt": "<｜begin▁of▁sentence｜>" + line["prompt"]}
    if line.get("tools"):
        body["tools"] = line["tools"]
    return "/v1/chat/completions", {**body, "messages": line["messages"]}


def ask_all(url, requests, concurrency):
    """The token ids of every choice, in the order of the requests."""

    async def ask(client, room, path, body):
        async with room:
            answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return [choice["token_ids"] for choice in answer.json()["choices"]]

    async def run():
        room = asyncio.Semaphore(concurrency)
        limits = httpx.Limits(max_connections=concurrency, keepalive_expiry=1)  # well before the server closes it
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            return await asyncio.gather(*(ask(client, room, *request) for request in requests))

    return asyncio.run(run())
