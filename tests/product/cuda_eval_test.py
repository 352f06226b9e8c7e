"""The embedded model served on a GPU with default flags answers tests/golden/eval.jsonl as well as on the CPU in the same
FP8 mode. Skipped where there is no GPU."""

import concurrent.futures

import httpx
import pytest

from cuda_transfer_test import usable_gpu
from deployment import Deployment
from eval_prompts import ask_all, prompts, request

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not usable_gpu(), reason="no GPU, or MANTA_BINARY is of no CUDA build")]

COUNT = 600
MAX_TOKENS = 150
EOS = 1
BOUND = 0.2  # points


def is_right(line, text):
    return text == line["answer"] if line["check"] == "exact" else all(part in text for part in line["contains"])


def accuracy(*flags):
    """In percent: as tools/tiny-model/evaluate.py judges, the reply has ended and says what it should."""
    lines = prompts(COUNT)
    with Deployment("--generation-config", "vllm", "--max-num-seqs", 64, "--enable-auto-tool-choice",
                    "--tool-call-parser", "deepseek_v3", *flags) as running:
        asked = [request(line, max_tokens=MAX_TOKENS) for line in lines]
        replies = [choices[0] for choices in ask_all(running.url, asked, 64)]
        with httpx.Client(base_url=running.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
            def text(tokens):
                answer = client.post("/detokenize", json={"tokens": tokens})
                assert answer.status_code == 200, answer.text
                return answer.json()["prompt"]

            texts = list(pool.map(text, [reply[:-1] for reply in replies]))
    ended = [bool(reply) and reply[-1] == EOS for reply in replies]
    right = sum(end and is_right(line, text) for line, end, text in zip(lines, ended, texts))
    return 100 * right / COUNT


def test_accuracy_is_the_cpus_in_the_same_fp8_mode():
    gpu = accuracy()
    cpu = accuracy("--device", "cpu", "--cpu-backend", "ref", "--fp8-activations", "dynamic")
    print(f"accuracy: {gpu:.2f} % on the GPU, {cpu:.2f} % on the CPU")
    assert abs(gpu - cpu) <= BOUND
