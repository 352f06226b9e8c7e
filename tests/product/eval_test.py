"""The prompts of tests/golden/eval.jsonl through HTTP, many at once, give the tokens that the engine gives when it is
called directly."""

import json
import subprocess

import pytest

from deployment import MANTA, ROOT, Deployment
from eval_prompts import ask_all, prompts, request

EVAL_TOKENS = MANTA.parent / "tests/exec/manta_eval_tokens"
MAX_TOKENS = 64


def direct_tokens(count):
    done = subprocess.run([str(EVAL_TOKENS), str(count), str(MAX_TOKENS)], cwd=ROOT, text=True, timeout=600,
                          stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_http_gives_the_engines_tokens(count):
    lines = prompts(count)
    direct = direct_tokens(count)
    assert len(direct) == count
    with Deployment("--generation-config", "vllm", "--api-server-count", 2, "--max-num-seqs", 32,
                    "--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v3") as running:
        served = [choices[0] for choices in ask_all(running.url, [request(line) for line in lines], 24)]
    different = [i for i in range(count) if served[i] != direct[i]]
    assert not different, f"{len(different)} of {count}, first {lines[different[0]]}"
