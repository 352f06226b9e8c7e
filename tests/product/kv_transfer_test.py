"""Prefill and decode as two deployments, driven the way other systems' proxies drive them: a prefill call that asks to
keep the rows, then the client's own call with the prefill's kv_transfer_params. The tokens must be those of one
deployment that does both, and the counters must say that the rows crossed."""

import concurrent.futures
import contextlib
import copy
import json
import os
import signal
import time

import httpx
import pytest

from deployment import Deployment, metric, wait_until

PROMPTS = [
    "7",
    "698+62=",
    "The quick brown fox jumps over the lazy dog and runs on. " * 4,
    "A list of numbers: " + ", ".join(str(i * 37 % 101) for i in range(90)),
]


def flags(connector, role, *more, **extra):
    config = {"kv_connector": connector, "kv_role": role, "kv_connector_extra_config": extra}
    return ["--kv-transfer-config", json.dumps(config), "--block-size", 16, "--max-num-batched-tokens", 64,
            "--max-num-seqs", 32, *more]


SIDE = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": "0"}


@contextlib.contextmanager
def pair(connector, *more, env=None, **extra):
    env = {**SIDE, **(env or {})}
    with Deployment(*flags(connector, "kv_producer", *more, **extra), env=env) as prefill, \
            Deployment(*flags(connector, "kv_consumer", *more, **extra), env=env) as decode:
        yield prefill, decode


def post(url, path, body, headers=None):
    response = httpx.post(url + path, json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def two_calls(prefill, decode, body, path="/v1/completions"):
    """What vLLM's toy proxy does."""
    first = copy.deepcopy(body)
    first["kv_transfer_params"] = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
                                   "remote_block_ids": None, "remote_host": None, "remote_port": None}
    first |= {"max_tokens": 1, "stream": False}
    params = post(prefill.url, path, first)["kv_transfer_params"]
    assert params["do_remote_prefill"] is True and params["remote_block_ids"]
    return post(decode.url, path, {**body, "kv_transfer_params": params})


def texts(answer):
    return [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]


def requests():
    for prompt in PROMPTS:
        yield {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        yield {"prompt": prompt, "max_tokens": 24, "temperature": 1.0, "seed": 7, "ignore_eos": True}
    yield {"prompt": PROMPTS[2], "max_tokens": 16, "temperature": 1.0, "seed": 3, "n": 3, "ignore_eos": True}


@pytest.fixture(scope="module")
def colocated():
    with Deployment("--block-size", 16, "--max-num-batched-tokens", 64, "--max-num-seqs", 32) as both:
        yield [texts(post(both.url, "/v1/completions", body)) for body in requests()]


def no_lease_is_left(prefill):
    wait_until(lambda: metric(prefill.url, "manta_kv_leases") == 0, "0 leases")


@pytest.mark.parametrize("mtp", [False, True])
def test_same_tokens_as_one_deployment(colocated, mtp):
    more = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}'] if mtp else []
    with pair("SharedMemoryConnector", *more) as (prefill, decode):
        for _ in range(2):  # the second time every full block is a prefix hit on both sides
            for body, expected in zip(requests(), colocated):
                assert texts(two_calls(prefill, decode, body)) == expected, body
        assert metric(decode.url, "manta_kv_transfer_bytes_total") > 0
        assert metric(prefill.url, "manta_kv_transfer_bytes_total") == metric(decode.url, "manta_kv_transfer_bytes_total")
        assert metric(decode.url, "vllm:nixl_num_failed_transfers_total") == 0
        no_lease_is_left(prefill)


def test_many_at_once(colocated):
    with pair("SharedMemoryConnector", "--no-enable-prefix-caching") as (prefill, decode):
        bodies = list(zip(requests(), colocated)) * 12
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            answers = list(pool.map(lambda pair: texts(two_calls(prefill, decode, pair[0])), bodies))
        assert answers == [expected for _, expected in bodies]
        no_lease_is_left(prefill)


def early(prefill, decode, body, transfer_id, first):
    """What manta's router does: both halves at once, one name; here in either order."""
    welcome = describe(prefill, decode)
    ask = {"prefill": (prefill, {"do_remote_decode": True, "transfer_id": transfer_id}),
           "decode": (decode, {"do_remote_prefill": True, "transfer_id": transfer_id, **welcome})}

    def send(half):
        deployment, params = ask[half]
        more = {"max_tokens": 1, "n": 1} if half == "prefill" else {}
        return post(deployment.url, "/v1/completions", {**body, **more, "kv_transfer_params": params})

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        order = [first, "decode" if first == "prefill" else "prefill"]
        futures = {half: pool.submit(send, half) for half in order}
        futures["prefill"].result()
        return futures["decode"].result()


def describe(prefill, decode):
    """Where the prefill's side channel is: a two-call answer says so."""
    answer = post(prefill.url, "/v1/completions", {"prompt": "x", "max_tokens": 1,
                                                   "kv_transfer_params": {"do_remote_decode": True}})
    params = answer["kv_transfer_params"]
    post(decode.url, "/v1/completions", {"prompt": "x", "max_tokens": 1, "kv_transfer_params": params})
    return {key: params[key] for key in ("remote_engine_id", "remote_host", "remote_port")}


def test_early_pull_in_both_orders(colocated):
    with pair("SharedMemoryConnector") as (prefill, decode):
        for first in ("prefill", "decode"):
            for i, (body, expected) in enumerate(zip(requests(), colocated)):
                if "n" in body:
                    continue
                body["cache_salt"] = first  # nothing is cached yet
                assert texts(early(prefill, decode, body, f"{first}-{i}", first)) == expected
        assert metric(decode.url, "manta_kv_transfer_bytes_total") > 0
        no_lease_is_left(prefill)


def test_a_prefill_that_never_comes_is_recomputed(colocated):
    with pair("SharedMemoryConnector", kv_rendezvous_timeout=0.3) as (prefill, decode):
        where = describe(prefill, decode)
        body, expected = list(zip(requests(), colocated))[4]
        params = {"do_remote_prefill": True, "transfer_id": "nobody", **where}
        assert texts(post(decode.url, "/v1/completions", {**body, "kv_transfer_params": params})) == expected
        wait_until(lambda: metric(decode.url, "vllm:nixl_num_failed_transfers_total") == 1, "a failed load")


def test_a_prefill_killed_between_the_calls_costs_nothing_but_time(colocated):
    with pair("SharedMemoryConnector") as (prefill, decode):
        body, expected = list(zip(requests(), colocated))[4]
        first = {**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        params = post(prefill.url, "/v1/completions", first)["kv_transfer_params"]
        prefill.kill("engine")
        assert texts(post(decode.url, "/v1/completions", {**body, "kv_transfer_params": params})) == expected


def test_a_stale_reader_is_refused(colocated):
    """The decode engine sleeps past the lease: what it would read then is refused, and computed instead."""
    with pair("SharedMemoryConnector", kv_lease_duration=0.5, env={"VLLM_NIXL_ABORT_REQUEST_TIMEOUT": "1"}) as (p, d):
        body, expected = list(zip(requests(), colocated))[4]
        first = {**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        params = post(p.url, "/v1/completions", first)["kv_transfer_params"]
        wait_until(lambda: metric(p.url, "manta_kv_leases") == 0, "the lease has expired")
        assert texts(post(d.url, "/v1/completions", {**body, "kv_transfer_params": params})) == expected
        assert metric(p.url, "vllm:nixl_num_kv_expired_reqs_total") >= 1


def test_caches_that_differ_are_named():
    env = {**SIDE, "VLLM_NIXL_ABORT_REQUEST_TIMEOUT": "1"}  # a draining prefill keeps what nobody claimed that long
    with Deployment(*flags("SharedMemoryConnector", "kv_producer"), env=env) as prefill, \
            Deployment("--kv-transfer-config",
                       json.dumps({"kv_connector": "SharedMemoryConnector", "kv_role": "kv_consumer",
                                   "kv_load_failure_policy": "fail"}), "--block-size", 32, env=env) as decode:
        first = {"prompt": PROMPTS[2], "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        params = post(prefill.url, "/v1/completions", first)["kv_transfer_params"]
        answer = httpx.post(decode.url + "/v1/completions", timeout=60,
                            json={"prompt": PROMPTS[2], "max_tokens": 4, "kv_transfer_params": params})
        assert answer.status_code >= 500
        assert "block_size" in answer.text and "32" in answer.text and "16" in answer.text


NOBODY = {"remote_engine_id": None, "remote_block_ids": None, "remote_host": None, "remote_port": None}


def toy_proxy(body):
    """vLLM's own, which the routers of others copy."""
    first = {k: v for k, v in body.items() if k not in ("stream_options", "min_tokens", "min_completion_tokens")}
    first |= {"stream": False, "max_tokens": 1,
              "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, **NOBODY}}
    if "max_completion_tokens" in first:
        first["max_completion_tokens"] = 1
    return first, {"X-Request-Id": "toy-1", "Authorization": "Bearer unused"}


def ray_proxy(body):
    """Ray 2.51's: a deep copy in which three fields are changed, min_tokens and the rest stay."""
    first = copy.deepcopy(body) | {"max_tokens": 1, "stream": False}
    first["kv_transfer_params"] = {"do_remote_decode": True, "do_remote_prefill": False, **NOBODY}
    return first, {}


def sidecar(body):
    """llm-d's, beside decode: both limits are set whether the client gave one or not."""
    first = {k: v for k, v in body.items() if k != "stream_options"}
    first |= {"stream": False, "max_tokens": 1, "max_completion_tokens": 1,
              "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, **NOBODY}}
    return first, {"x-request-id": "llmd-7"}


def first_generation(params):
    """Of vLLM 0.11: no name of the prefill's request, a flat list of blocks."""
    assert params["remote_block_ids"] and isinstance(params["remote_block_ids"][0], int)
    return params


def later_generation(params):
    """Of later versions: a list of blocks for each group of layers, more keys."""
    return params | {"remote_block_ids": [params["remote_block_ids"]], "transfer_mode": "pull",
                     "remote_blocks_expiry_time": 1e12, "remote_registration_generation": 1}


PROXIES = {"vLLM's toy proxy": (toy_proxy, first_generation), "vllm-router": (toy_proxy, later_generation),
           "Ray": (ray_proxy, first_generation), "llm-d": (sidecar, later_generation)}
CLIENTS = [
    ("/v1/completions", {"prompt": PROMPTS[3], "max_tokens": 20, "temperature": 0}),
    ("/v1/completions", {"prompt": PROMPTS[2], "max_tokens": 20, "temperature": 1.0, "seed": 4, "n": 2, "min_tokens": 3}),
    ("/v1/completions", {"prompt": list(range(20, 90)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0,
                              "max_completion_tokens": 16}),
]


def stream_text(url, path, body, headers):
    """By choice, from a stream that must end well and say how many tokens it was."""
    texts, usage = {}, None
    with httpx.stream("POST", url + path, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
    assert usage
    return [texts[i] for i in sorted(texts)]


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxies_of_others_can_drive_it(proxy):
    make_prefill, as_passed_on = PROXIES[proxy]
    with pair("NixlConnector") as (prefill, decode):
        for path, body in CLIENTS:
            expected = texts(post(decode.url, path, body))
            before = metric(decode.url, "manta_kv_transfer_bytes_total", side="received")
            first, headers = make_prefill(body)
            answer = post(prefill.url, path, first, headers)
            params = as_passed_on(answer["kv_transfer_params"])
            if "X-Request-Id" in headers:
                assert answer["id"].endswith(headers["X-Request-Id"])
            streamed = {**body, "stream": True, "stream_options": {"include_usage": True}, "kv_transfer_params": params}
            assert stream_text(decode.url, path, streamed, headers) == expected
            wait_until(lambda: metric(decode.url, "manta_kv_transfer_bytes_total", side="received") > before, "rows cross")
        assert metric(decode.url, "vllm:nixl_num_failed_transfers_total") == 0
        no_lease_is_left(prefill)


def bench_flags(*children):
    bench = {"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both",
             "kv_connector_extra_config": {"fill_mean": 0.015, "fill_std": 0.0}}
    config = bench if not children else {"kv_connector": "MultiConnector", "kv_role": "kv_both",
                                         "kv_connector_extra_config": {"connectors": [*children, bench]}}
    return ["--kv-transfer-config", json.dumps(config), "--block-size", 16, "--max-num-batched-tokens", 64,
            "--max-num-seqs", 32, "--no-enable-prefix-caching"]


def made_up(deployment, first):
    prompt = [first + i % 300 for i in range(2999)] + [77]
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    return post(deployment.url, "/v1/completions", body)["choices"][0]["token_ids"]


def test_decode_bench_needs_no_prefill():
    """With constant rows the answer hangs on the last token alone."""
    with Deployment(*bench_flags()) as bench:
        assert made_up(bench, 10) == made_up(bench, 50)


def test_both_connectors_in_one():
    nixl = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    with Deployment(*flags("NixlConnector", "kv_producer"), env=SIDE) as prefill, \
            Deployment(*bench_flags(nixl), env=SIDE) as decode, Deployment("--block-size", 16) as colocated:
        assert made_up(decode, 10) == made_up(decode, 50)
        body = {"prompt": PROMPTS[3], "max_tokens": 24, "temperature": 0}
        assert texts(two_calls(prefill, decode, body)) == texts(post(colocated.url, "/v1/completions", body))
        assert metric(decode.url, "manta_kv_transfer_bytes_total", side="received") > 0
        no_lease_is_left(prefill)


def test_params_are_checked():
    with pair("SharedMemoryConnector") as (prefill, decode):
        def refused(deployment, params):
            answer = httpx.post(deployment.url + "/v1/completions", timeout=60,
                                json={"prompt": "x", "max_tokens": 1, "kv_transfer_params": params})
            assert answer.status_code == 400, answer.text
            return answer.text

        assert "remote_host" in refused(decode, {"do_remote_prefill": True})
        assert "kv_producer" in refused(prefill, {"do_remote_prefill": True, "remote_host": "h", "remote_port": 1,
                                                  "remote_engine_id": "e", "remote_request_id": "r"})
        assert "kv_consumer" in refused(decode, {"do_remote_decode": True})
        assert "remote_port" in refused(decode, {"do_remote_prefill": True, "remote_port": 70000})
