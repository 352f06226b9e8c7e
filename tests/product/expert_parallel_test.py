"""Ranks with a share of the experts, as real processes: the same tokens as one process that has all of them, whatever
is killed meanwhile.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import threading

import pytest

from deployment import Deployment, metric, wait_until
from eval_prompts import ask_all, request
from eval_prompts import prompts as eval_prompts

MAX_TOKENS = 160
NUM_STREAMS = 64
FLAGS = ["--max-num-seqs", 64, "--num-gpu-blocks-override", 512, "--max-model-len", 512]
GROUP = ["-dp", 4, "--enable-expert-parallel", *FLAGS]


def prompts(n=NUM_STREAMS):
    return [f"Question {i}: what is {i} plus {i + 1}, and why?" for i in range(n)]


class Streams:
    """A streaming completion per prompt, each on a thread of its own; every other one samples."""

    def __init__(self, url, texts, max_tokens=MAX_TOKENS):
        self.host = url.removeprefix("http://")
        self.max_tokens = max_tokens
        self.started = threading.Semaphore(0)
        self.num = len(texts)
        self.pool = concurrent.futures.ThreadPoolExecutor(self.num)
        self.futures = [self.pool.submit(self.run, i, text) for i, text in enumerate(texts)]

    def run(self, i, text):
        connection = http.client.HTTPConnection(self.host, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps({
            "prompt": text, "max_tokens": self.max_tokens, "stream": True, "ignore_eos": True, "seed": i,
            "temperature": i % 2}), {"Content-Type": "application/json"})
        out = ""
        try:
            for line in connection.getresponse():
                if not line.startswith(b"data: ") or b"[DONE]" in line:
                    continue
                event = json.loads(line[6:])
                if not out:
                    self.started.release()
                out += event["choices"][0]["text"] if "choices" in event else f"<{event}>"
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as e:
            return f"<{e!r}>"
        finally:
            connection.close()
        return out

    def wait_until_all_stream(self):
        for _ in range(self.num):
            assert self.started.acquire(timeout=60)

    def texts(self):
        return [f.result(timeout=180) for f in self.futures]


@pytest.fixture(scope="module")
def expected():
    with Deployment(*FLAGS) as d:
        return Streams(d.url, prompts()).texts()


def shared_memory():
    return sorted(p.name for p in pathlib.Path("/dev/shm").iterdir() if "manta" in p.name)


def num_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def idle(d):
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    wait_until(lambda: not any(metric(d.url, name) for name in names), "requests or blocks stayed behind")


def test_same_tokens_and_rows_cross_ranks(expected):
    with Deployment(*GROUP) as d:
        assert Streams(d.url, prompts()).texts() == expected
        assert metric(d.url, "manta_ep_dispatch_rows_total") > NUM_STREAMS * MAX_TOKENS
        assert metric(d.url, "manta_ep_dispatch_bytes_total") > NUM_STREAMS * MAX_TOKENS * 2 * 256
        # One request: the other ranks only serve their experts.
        before = metric(d.url, "manta_dummy_steps_total")
        assert Streams(d.url, prompts(1)).texts() == expected[:1]
        wait_until(lambda: metric(d.url, "manta_dummy_steps_total") >= before + 3 * (MAX_TOKENS - 1), "dummy steps are counted")
        idle(d)


REDUNDANT = ["--enable-eplb", "--eplb-config", '{"num_redundant_experts":4}']


@pytest.mark.slow
@pytest.mark.parametrize("group", [["-dp", 2], ["-dp", 4], ["-dp", 4, *REDUNDANT]], ids=["DP2", "DP4", "4 redundant"])
def test_eval_prompts(group):
    flags = ["--generation-config", "vllm", "--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v3"]
    asked = [request(line) for line in eval_prompts(600)]
    with Deployment(*flags) as one:
        expected = ask_all(one.url, asked, 64)
    with Deployment(*flags, *group, "--enable-expert-parallel") as d:
        served = ask_all(d.url, asked, 64)
        assert metric(d.url, "manta_ep_dispatch_rows_total") > 0
    assert [i for i in range(600) if served[i] != expected[i]] == []


def test_same_tokens_in_two_microbatches(expected):
    with Deployment(*GROUP, "--enable-dbo", "--dbo-decode-token-threshold", 8, "--dbo-prefill-token-threshold", 8) as d:
        assert Streams(d.url, prompts()).texts() == expected
        idle(d)


@pytest.mark.parametrize("what", ["engine", "coordinator"])
def test_killed_under_streams(expected, what):
    with Deployment(*GROUP) as d:
        engines = d.children("engine")
        Streams(d.url, prompts(8), 8).texts()  # connections that a deployment opens once are open
        descriptors = {pid: num_descriptors(pid) for pid in engines}
        streams = Streams(d.url, prompts())
        streams.wait_until_all_stream()
        killed = d.kill(what, 1 if what == "engine" else 0)
        assert streams.texts() == expected
        idle(d)
        now = d.children("engine")
        assert len(now) == 4 and (killed in engines) == (set(now) != set(engines))
        if what == "engine":
            assert [pid for pid in engines if pid not in now] == [killed], "no survivor was restarted"
        wait_until(lambda: all(num_descriptors(pid) <= descriptors[pid] + 1 for pid in now if pid in descriptors),
                 f"descriptors leaked: {[(descriptors.get(p), num_descriptors(p)) for p in now]}")
        every = now + d.children("api") + d.children("coordinator")
    assert [pid for pid in every if os.path.exists(f"/proc/{pid}")] == []
    assert shared_memory() == []


def test_api_killed_under_streams(expected):
    with Deployment(*GROUP) as d:
        port = d.url.rsplit(":", 1)[1]
    with Deployment(*GROUP, "--port", port) as d:
        engines = d.children("engine")
        streams = Streams(d.url, prompts())
        streams.wait_until_all_stream()
        d.kill("api")
        streams.texts()  # they end, with what they have

        def serves():
            try:
                return Streams(d.url, prompts(4)).texts() == expected[:4]
            except OSError:
                return False

        wait_until(serves, "the new api process does not serve the same tokens")
        idle(d)
        assert d.children("engine") == engines
    assert shared_memory() == []
