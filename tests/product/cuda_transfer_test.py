"""Prefill and decode as two engines on one GPU, their caches in its memory, rows pulled by NIXL: the tokens of one engine
that does both, as far as bf16 can decide, and every byte counted on both sides. Skipped where there is no GPU."""

import concurrent.futures
import contextlib
import ctypes
import json
import subprocess

import pytest

from deployment import MANTA, MODEL, Deployment, metric
from eval_prompts import prompts, request
from kv_transfer_test import SIDE, no_lease_is_left, post, two_calls

BLOCK_SIZE = 64
CACHE = 256 << 20
ROW_BYTES = (512 + 64) * 2  # of the embedded model, bf16
NUM_PROMPTS = 48
NEAR_TIES = 2  # prompts of NUM_PROMPTS whose best two tokens may change places: the last token's row is of another batch
AT_ONCE = 16


def usable_gpu():
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0 and (MANTA.parent / "libmanta_cuda.so").exists()
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not usable_gpu(), reason="no GPU, or MANTA_BINARY is of no CUDA build")


def flags(*more):
    return ["--device", "cuda", "--kv-cache-memory-bytes", CACHE, "--block-size", BLOCK_SIZE, "--max-num-seqs", 32,
            "--max-num-batched-tokens", 512, "--generation-config", "vllm", "--enable-auto-tool-choice",
            "--tool-call-parser", "deepseek_v3", *more]


def connector(name, role, **extra):
    return ["--kv-transfer-config", json.dumps(
        {"kv_connector": name, "kv_role": role, "kv_connector_extra_config": extra})]


@contextlib.contextmanager
def pair(*more):
    with Deployment(*flags(*connector("NixlConnector", "kv_producer"), *more), env=SIDE) as prefill, \
            Deployment(*flags(*connector("NixlConnector", "kv_consumer"), *more), env=SIDE) as decode:
        yield prefill, decode


def asked():
    return [request(line) for line in prompts(NUM_PROMPTS)]


def answers(ask):
    """Token ids of every prompt, AT_ONCE at a time."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return [a["choices"][0]["token_ids"] for a in pool.map(lambda job: ask(*job), enumerate(asked()))]


@pytest.fixture(scope="module")
def colocated():
    with Deployment(*flags()) as both:
        yield answers(lambda _, job: post(both.url, *job))


def same_but_for_near_ties(tokens, expected):
    different = [i for i in range(NUM_PROMPTS) if tokens[i] != expected[i]]
    print(f"{NUM_PROMPTS - len(different)} of {NUM_PROMPTS} prompts have the tokens of one engine")
    assert len(different) <= NEAR_TIES, f"prompts {different}"


def every_byte_is_counted(prefill, decode):
    crossed = metric(decode.url, "manta_kv_transfer_bytes_total")
    print(f"{crossed:.0f} bytes crossed")
    assert crossed > 0 and crossed % (BLOCK_SIZE * ROW_BYTES) == 0
    assert crossed == metric(prefill.url, "manta_kv_transfer_bytes_total")
    assert metric(decode.url, "vllm:nixl_num_failed_transfers_total") == 0
    no_lease_is_left(prefill)


@pytest.mark.parametrize("mtp", [False, True])
def test_two_calls(colocated, mtp):
    more = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}'] if mtp else []
    with pair("--no-enable-prefix-caching", *more) as (prefill, decode):
        tokens = answers(lambda _, job: two_calls(prefill, decode, job[1], path=job[0]))
        same_but_for_near_ties(tokens, colocated)
        every_byte_is_counted(prefill, decode)


def test_made_up_rows_alone_and_under_multi():
    body = {"prompt": "The quick brown fox", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    bench = connector("DecodeBenchConnector", "kv_both", fill_std=0.5)
    multi = connector("MultiConnector", "kv_both", connectors=[
        {"kv_connector": "DecodeBenchConnector"}, {"kv_connector": "NixlConnector"}])
    for chosen in (bench, multi):
        with Deployment(*flags(*chosen), env=SIDE) as running:
            assert post(running.url, "/v1/completions", body)["usage"]["completion_tokens"] == 8


def test_shared_memory_is_refused():
    chosen = flags(*connector("SharedMemoryConnector", "kv_both"))
    done = subprocess.run([MANTA, "serve", MODEL, "--port", "0", *map(str, chosen)],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "NixlConnector takes GPU memory" in done.stdout + done.stderr
