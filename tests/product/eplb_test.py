"""Experts on the move and steps in two microbatches under load, as real processes: not a token changes."""

import json

import pytest

from deployment import Deployment, metric, wait_until
from eval_prompts import ask_all, prompts, request

FLAGS = ["--max-num-seqs", 64, "--max-model-len", 4096, "--generation-config", "vllm", "--enable-auto-tool-choice",
         "--tool-call-parser", "deepseek_v3"]
EPLB = {"step_interval": 50, "window_size": 50, "num_redundant_experts": 8, "min_gain": 0}
GROUP = ["-dp", 4, "--enable-expert-parallel", "--enable-eplb", "--eplb-config", json.dumps(EPLB)]
DBO = ["--enable-dbo", "--dbo-decode-token-threshold", 4, "--dbo-prefill-token-threshold", 8]


def requests(lines, sampled):
    yield from (request(line) for line in lines)
    for i, line in enumerate(lines[:sampled]):
        yield request(line, temperature=1.0, seed=i, top_p=0.95)


@pytest.fixture(scope="module", params=[(48, 16), pytest.param((600, 200), marks=pytest.mark.slow)])
def alone(request):
    num_prompts, sampled = request.param
    asked = list(requests(prompts(num_prompts), sampled))
    with Deployment(*FLAGS) as one:
        return asked, ask_all(one.url, asked, 32)


@pytest.mark.parametrize("dbo", [False, True], ids=["whole steps", "dbo"])
def test_same_tokens(alone, dbo):
    asked, expected = alone
    with Deployment(*GROUP, *FLAGS, *(DBO if dbo else [])) as d:
        for _ in range(2):  # the second time with another placement and a full prefix cache
            served = ask_all(d.url, asked, 64)
            different = [i for i, tokens in enumerate(served) if tokens != expected[i]]
            assert not different, f"{len(different)} of {len(asked)}, first {asked[different[0]]}"
        wait_until(lambda: metric(d.url, "manta_eplb_rearrangements_total", engine=0) >= 2, "two rearrangements")
        rearranged = metric(d.url, "manta_eplb_rearrangements_total", engine=0)
        split = metric(d.url, "manta_dbo_steps_total", result="split")
        steps = metric(d.url, "manta_engine_steps_total", engine=0)
        print(f"{len(asked)} requests twice: {rearranged:.0f} rearrangements, {split:.0f} split steps, {steps:.0f} steps")
        assert (split > 0) == dbo
