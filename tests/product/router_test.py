"""`manta router` before real deployments: same answers as without it, and what its clients see when processes die."""

import asyncio
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest

from deployment import MODEL, ROOT, Deployment, Router, metric, wait_until

# A pace at which streams are still running when something is killed, and a model that says the same each time.
FAKE = ["--executor", "fake", "--fake-tokens-per-second", "40", "--max-model-len", 512]


def coordinator_of(deployment):
    """The coordinator's address: on the command line of every child."""
    words = pathlib.Path(f"/proc/{deployment.children('api')[0]}/cmdline").read_bytes().split(b"\0")
    return words[words.index(b"--coordinator") + 1].decode()


def post(url, path, body, headers=None):
    return httpx.post(url + path, json=body, headers=headers, timeout=60)


def stream(url, path, body, on_event=None):
    """The data of every event."""
    events = []
    with httpx.stream("POST", url + path, json={**body, "stream": True}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line[6:])
                if on_event:
                    on_event(len(events))
    return events


def text_of(events):
    """By choice."""
    assert events[-1] == "[DONE]", events[-3:]
    chunks = [json.loads(e) for e in events[:-1]]
    assert all("error" not in c for c in chunks), chunks[-1]
    texts = {}
    for choice in (c for chunk in chunks for c in chunk["choices"]):
        text = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


def unnamed(answer):
    """Without what differs from request to request."""
    return {k: v for k, v in answer.items() if k not in ("id", "created")}


REQUESTS = [
    ("/v1/completions", {"prompt": "The capital of", "max_tokens": 24, "temperature": 0}),
    ("/v1/completions", {"prompt": [5, 6, 7, 8, 9], "max_tokens": 16, "temperature": 0, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": ["one two", "three"], "max_tokens": 8, "n": 2, "seed": 5, "temperature": 0.8}),
    ("/v1/completions", {"prompt": "a b c d", "max_tokens": 12, "seed": 1, "stop": ["e"], "min_tokens": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 24,
                              "temperature": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Sort: 5 2 9"}], "max_tokens": 24, "seed": 11,
                              "logprobs": True, "top_logprobs": 1}),
]
REFUSED = [
    ("/v1/completions", {"prompt": "x", "max_tokens": -1}),
    ("/v1/completions", {"prompt": "x", "temperature": 99}),
    ("/v1/completions", {"max_tokens": 4}),
    ("/v1/completions", {"model": "other", "prompt": "x"}),
    ("/v1/completions", {"prompt": "word " * 20000}),
    ("/v1/chat/completions", {"messages": "hello"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto", "tools": []}),
    ("/v1/nothing", {"prompt": "x"}),
]


@pytest.fixture(scope="module")
def pair():
    """A deployment, and a router before it and a second one of another role."""
    with Deployment("--max-model-len", 1024) as prefill, Deployment("--max-model-len", 1024, "-dp", 2) as decode:
        with Router("--prefill-endpoints", coordinator_of(prefill), "--decode-endpoints", coordinator_of(decode),
                    "--api-server-count", 2) as router:
            yield prefill, decode, router


@pytest.mark.parametrize("path, body", REQUESTS)
def test_same_answers_as_without_a_router(pair, path, body):
    _, decode, router = pair
    direct, relayed = post(decode.url, path, body), post(router.url, path, body)
    assert direct.status_code == relayed.status_code == 200, relayed.text
    assert unnamed(direct.json()) == unnamed(relayed.json())
    if not body.get("echo"):
        assert text_of(stream(decode.url, path, body)) == text_of(stream(router.url, path, body))


@pytest.mark.parametrize("path, body", REFUSED)
def test_same_refusals_as_without_a_router(pair, path, body):
    _, decode, router = pair
    direct, relayed = post(decode.url, path, body), post(router.url, path, body)
    assert direct.status_code == relayed.status_code and 400 <= direct.status_code < 500
    assert direct.json() == relayed.json()


def test_request_id_goes_end_to_end(pair):
    _, _, router = pair
    body = {"prompt": "x", "max_tokens": 2}
    answer = post(router.url, "/v1/completions", body, {"X-Request-Id": "mine-7"})
    assert answer.headers["X-Request-Id"] == "mine-7"
    assert answer.json()["id"] == "cmpl-mine-7"
    drawn = post(router.url, "/v1/completions", body)
    assert drawn.json()["id"] == "cmpl-" + drawn.headers["X-Request-Id"]


def test_what_a_router_answers_itself(pair):
    _, decode, router = pair
    assert httpx.get(router.url + "/v1/models").json()["data"][0]["id"] == MODEL
    health = httpx.get(router.url + "/health").json()
    assert health["status"] == "ready"
    assert {r["role"]: len(r["apis"][0]["ranks"]) for r in health["roles"]} == {"prefill": 1, "decode": 2}
    ids = post(router.url, "/tokenize", {"prompt": "hello world"}).json()["tokens"]
    assert ids == post(decode.url, "/tokenize", {"prompt": "hello world"}).json()["tokens"]


def test_metrics_of_all_engines(pair):
    _, decode, router = pair
    post(router.url, "/v1/completions", {"prompt": "x", "max_tokens": 2})
    text = httpx.get(router.url + "/metrics").text
    running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    assert sorted(re.search(r'role="(\w+)"', line)[1] for line in running) == ["decode", "decode", "prefill"]
    assert text.count("# TYPE vllm:num_requests_running ") == 1
    assert metric(router.url, "manta_router_requests_total") > 0
    assert metric(router.url, "vllm:generation_tokens_total", role="decode") > 0


def test_many_at_once_spread_over_the_ranks(pair):
    _, decode, router = pair

    async def run():
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            answers = await asyncio.gather(*(
                client.post(router.url + "/v1/completions",
                            json={"prompt": f"number {i}", "max_tokens": 8, "temperature": 0}) for i in range(60)))
            assert {a.status_code for a in answers} == {200}
    asyncio.run(run())
    for rank in ("0", "1"):
        assert metric(router.url, "vllm:prefix_cache_queries_total", role="decode", engine=rank) > 0
    wait_until(lambda: metric(router.url, "manta_router_requests_in_flight") == 0, "the counts come back to nothing")


def test_big_bodies_cross_in_parts(pair):
    _, decode, router = pair
    body = {"prompt": [7] * 900, "max_tokens": 2, "temperature": 0, "user": "x" * (3 << 20)}
    direct, relayed = post(decode.url, "/v1/completions", body), post(router.url, "/v1/completions", body)
    assert relayed.status_code == 200, relayed.text
    assert unnamed(direct.json()) == unnamed(relayed.json())


def test_api_killed_and_no_client_notices():
    request = {"prompt": [5, 6, 7, 8], "max_tokens": 120, "ignore_eos": True, "temperature": 0}
    with Deployment(*FAKE, "-dp", 2) as d, Router("--decode-endpoints", coordinator_of(d)) as router:
        expected = text_of(stream(router.url, "/v1/completions", request))
        started, results, errors = threading.Semaphore(0), [], []

        def client():
            try:
                events = stream(router.url, "/v1/completions", request, lambda n: n == 5 and started.release())
                ids = {json.loads(e)["id"] for e in events[:-1]}
                results.append((text_of(events), len(ids)))
            except Exception as e:  # noqa: BLE001: reported by the assertion below
                errors.append(repr(e))
        clients = [threading.Thread(target=client) for _ in range(40)]
        for c in clients:
            c.start()
        for _ in clients:
            started.acquire(timeout=30)
        d.kill("api")
        for c in clients:
            c.join(60)
        assert not errors, errors[:3]
        assert results == [(expected, 1)] * 40
        assert metric(router.url, "manta_router_resubmissions_total") > 0


def test_not_streamed_answers_survive_an_api_too():
    request = {"prompt": [5, 6, 7, 8], "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    with Deployment(*FAKE) as d, Router("--decode-endpoints", coordinator_of(d)) as router:
        expected = unnamed(post(router.url, "/v1/completions", request).json())
        results = []
        clients = [threading.Thread(target=lambda: results.append(post(router.url, "/v1/completions", request)))
                   for _ in range(10)]
        for c in clients:
            c.start()
        wait_until(lambda: metric(router.url, "manta_router_requests_in_flight") == 10, "10 under way")
        d.kill("api")
        for c in clients:
            c.join(60)
        assert [r.status_code for r in results] == [200] * 10
        assert all(unnamed(r.json()) == expected for r in results)


def test_disconnects_reach_the_engines():
    with Deployment(*FAKE, "--max-num-seqs", 256) as d, Router("--decode-endpoints", coordinator_of(d)) as router:
        host, port = router.url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": [5, 6], "max_tokens": 500, "ignore_eos": True, "stream": True})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        clients = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
        for client in clients:
            client.sendall(f"{head}\r\n\r\n{body}".encode())
        for client in clients:
            seen = b""
            while b"data: " not in seen:
                seen += client.recv(4096)
        for client in clients:
            client.close()
        wait_until(lambda: metric(router.url, "vllm:num_requests_running") == 0, "the engine is idle", 8)
        assert metric(router.url, "vllm:kv_cache_usage_perc") == 0
        assert metric(router.url, "manta_router_requests_in_flight") == 0


def test_no_engine_is_503_and_health_says_so():
    with Deployment(*FAKE) as d:
        address = coordinator_of(d)
        with Router("--decode-endpoints", address) as router:
            d.terminate()
            d.process.wait(timeout=60)
            wait_until(lambda: httpx.get(router.url + "/health").status_code == 503, "health tells")
            answer = post(router.url, "/v1/completions", {"prompt": [5], "max_tokens": 2})
            assert answer.status_code == 503 and "Retry-After" in answer.headers


def test_admission_is_bounded():
    with Deployment(*FAKE) as d, Router("--decode-endpoints", coordinator_of(d), "--max-num-queued-reqs", 3) as router:
        answer = post(router.url, "/v1/completions", {"prompt": [[5], [6], [7], [8]], "max_tokens": 2})
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        assert post(router.url, "/v1/completions", {"prompt": [[5], [6]], "max_tokens": 2}).status_code == 200


def test_sigterm_finishes_running_streams():
    request = {"prompt": [5, 6, 7, 8], "max_tokens": 60, "ignore_eos": True}
    with Deployment(*FAKE) as d, Router("--decode-endpoints", coordinator_of(d)) as router:
        events = stream(router.url, "/v1/completions", request,
                        lambda n: n == 5 and router.process.send_signal(signal.SIGTERM))
        assert events[-1] == "[DONE]" and len(events) > 60


def test_endpoints_file_is_followed(tmp_path):
    path = tmp_path / "endpoints.json"

    def write(*coordinators):
        half = tmp_path / "half"
        half.write_text(json.dumps({"mixed": list(coordinators)}))
        half.rename(path)
    name = ["--served-model-name", "deepseek"]
    with Deployment(*FAKE, *name) as one, Deployment(*FAKE, *name) as two:
        write(coordinator_of(one))
        router = Router("--tokenizer", MODEL, "--served-model-name", "deepseek", "--endpoints", path, model=())
        with router:
            ask = {"model": "deepseek", "prompt": [5], "max_tokens": 2}
            assert post(router.url, "/v1/completions", ask).status_code == 200

            def pids():
                roles = httpx.get(router.url + "/health").json()["roles"]
                return {process.get("pid") for role in roles for process in role["apis"]}
            write(coordinator_of(one), coordinator_of(two))
            wait_until(lambda: pids() == {one.children("api")[0], two.children("api")[0]}, "both are known")


def test_garbage_on_the_hop_is_refused():
    request = {"prompt": [5, 6], "max_tokens": 4}
    with Deployment(*FAKE) as d, Router("--decode-endpoints", coordinator_of(d)) as router:
        name = "\0" + coordinator_of(d).removeprefix("unix:@").replace("-coordinator", "-api")
        api = d.children("api")
        for garbage in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"MNTA\1\0\x30\0" + bytes(12) + b"\xff\xff"):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(30)
                s.connect(name)
                s.sendall(garbage)
                s.shutdown(socket.SHUT_WR)
                while s.recv(4096):
                    pass
        assert post(router.url, "/v1/completions", request).status_code == 200
        assert d.children("api") == api
