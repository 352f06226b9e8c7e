"""deploy/local.yaml as a whole: 2 prefill ranks, 4 decode ranks and a router give the tokens of one rank that does
both, and the cache rows cross from one to the other."""

import json
import random

import pytest

from deployment import Deployment, Up, metric, wait_until, write_yaml
from eval_prompts import ask_all, prompts, request

MODEL_LEN = 4096  # the longest prompts below leave one token of it
SHARED = "All of the following begin with the same words, which are cached after the first of them. " * 3


def requests(count, sampled):
    """Greedy ones, sampled ones, and the lengths at both ends."""
    lines = prompts(count)
    yield from (request(line) for line in lines)
    for i, line in enumerate(lines[:sampled]):
        yield request(line, temperature=1.0, seed=i, top_p=0.95, n=1 + i % 3)
    draw = random.Random(1)
    for length, max_tokens in [(1, 24), (MODEL_LEN - 1, 1), (MODEL_LEN - 2, 2), (64, 8), (65, 8), (63, 1)]:
        prompt = [draw.randrange(10, 400) for _ in range(length)]
        for temperature in (0, 1.0):
            yield "/v1/completions", {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "seed": 5,
                                      "ignore_eos": True, "return_token_ids": True}
    for i in range(12):
        yield "/v1/completions", {"prompt": SHARED + str(i), "max_tokens": 8, "temperature": 0, "return_token_ids": True}


def pd_file(folder, connector, more):
    def change(args, file):
        for role in ("prefill_config", "decode_config"):
            args[role]["engine_kwargs"]["kv_transfer_config"]["kv_connector"] = connector
            args[role]["engine_kwargs"].update(more)

    return write_yaml(folder, change)


COMMON = {"max_model_len": MODEL_LEN, "block_size": 32, "generation_config": "vllm", "enable_auto_tool_choice": True,
          "tool_call_parser": "deepseek_v3"}
MTP = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
VARIANTS = {
    "nixl": ("NixlConnector", {}),
    "shared memory": ("SharedMemoryConnector", {}),
    "chunks of 64": ("SharedMemoryConnector", {"max_num_batched_tokens": 64, "max_num_seqs": 32}),
    "mtp": ("NixlConnector", MTP),
    "no prefix cache": ("NixlConnector", {"enable_prefix_caching": False}),
}


def common_flags():
    return [f"--{key.replace('_', '-')}={value}" for key, value in COMMON.items()]


def acceptance(url, **labels):
    accepted = metric(url, "vllm:spec_decode_num_accepted_tokens_total", **labels)
    return accepted / metric(url, "vllm:spec_decode_num_draft_tokens_total", **labels)


@pytest.fixture(scope="module", params=[(40, 20), pytest.param((600, 200), marks=pytest.mark.slow)])
def colocated(request):
    asked = list(requests(*request.param))
    with Deployment(*common_flags(), "--max-num-seqs", 64) as both:
        return asked, ask_all(both.url, asked, 32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_tokens(colocated, tmp_path, variant):
    asked, expected = colocated
    connector, more = VARIANTS[variant]
    file = pd_file(tmp_path, connector, {**COMMON, **more})
    with Up(file) as up:
        for _ in range(2):  # the second time with a prefix cache that is full of them
            served = ask_all(up.url, asked, 500)
            different = [i for i, tokens in enumerate(served) if tokens != expected[i]]
            assert not different, f"{len(different)} of {len(asked)}, first {asked[different[0]]}"
        wait_until(lambda: metric(up.url, "manta_kv_leases") == 0, "0 leases")

        def crossed(role, side):
            return metric(up.url, "manta_kv_transfer_bytes_total", role=role, side=side, connector=connector)

        wait_until(lambda: crossed("decode", "received") == crossed("prefill", "sent"), "both sides count the same")
        assert crossed("decode", "received") > 0
        assert metric(up.url, "vllm:nixl_num_failed_transfers_total") == 0


def test_drafts_are_accepted_as_often(colocated, tmp_path):
    asked, _ = colocated
    mtp = ["--speculative-config", json.dumps(MTP["speculative_config"])]
    with Deployment(*common_flags(), "--max-num-seqs", 64, *mtp) as both:
        ask_all(both.url, asked, 32)
        expected = acceptance(both.url)
    with Up(pd_file(tmp_path, "SharedMemoryConnector", {**COMMON, **MTP})) as up:
        ask_all(up.url, asked, 500)
        assert acceptance(up.url, role="decode") == pytest.approx(expected, abs=0.001)
