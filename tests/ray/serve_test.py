"""`serve run pd.yaml` on one machine: deploy/pd.yaml with counts changed, real clients, killed processes, changed
configurations, and nothing left behind."""

import concurrent.futures
import copy
import json
import os
import signal
import threading

import httpx
import pytest
from cluster import LOOPBACK, ROOT, VENV, Cluster, processes_with, status_of, wait_for
from deployment import Deployment, metric
from pd_file import MODEL, meaningful, scaled

pytestmark = pytest.mark.skipif(VENV is None, reason="MANTA_RAY_VENV is not set: ./dev test ray")

PROMPTS = ["What is 17 + 25?", "What is the capital of France?", "Sort 5 2 9 1.", "Say nothing."]
LONG = {"prompt": [5, 6, 7, 8, 9], "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def cluster():
    # Room for a second group of each role: a changed configuration starts beside the old one.
    with Cluster({"prefill": 4, "decode": 4}) as c:
        c.run(meaningful(scaled()))
        yield c


def chat(url, content, model="deepseek", stream=False):
    body = {"model": model, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": content}], "stream": stream}
    if not stream:
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]
    with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.count("[DONE]") == 1 and events[-1] == "[DONE]"
    return "".join(json.loads(e)["choices"][0]["delta"].get("content") or "" for e in events[:-1])


def stream_text(url, on_chunk=None):
    """The text of LONG; fails unless the stream is whole."""
    text, events = "", 0
    with httpx.stream("POST", url + "/v1/completions", json={**LONG, "model": "deepseek"}, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += event["choices"][0]["text"]
                events += 1
                if on_chunk:
                    on_chunk(events)
    raise AssertionError(f"the stream ended after {len(text)} characters without [DONE]")


class Streams:
    """`with Streams(urls): …` runs a stream to each URL, the body begins when all have begun; at the end each has given the
    text that an undisturbed one gives."""

    def __init__(self, urls):
        self._urls = urls
        self._pool = concurrent.futures.ThreadPoolExecutor(len(urls))

    def __enter__(self):
        self._expected = stream_text(self._urls[0])
        begun = threading.Semaphore(0)
        self._running = [self._pool.submit(stream_text, url, lambda n: n == 3 and begun.release()) for url in self._urls]
        for _ in self._urls:
            assert begun.acquire(timeout=60)

    def __exit__(self, kind, *_):
        texts = [r.result(timeout=180) if kind is None else None for r in self._running]
        self._pool.shutdown(wait=kind is None)
        assert kind is not None or texts == [self._expected] * len(texts)


class Asking:
    """While its body runs, short requests to each URL one after the other, all of which must be answered."""

    def __init__(self, *urls):
        self._urls, self._over = urls, threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(len(urls))

    def _ask(self, url):
        while not self._over.is_set():
            assert chat(url, PROMPTS[0]) == "17 + 25 = 42"

    def __enter__(self):
        self._asking = [self._pool.submit(self._ask, url) for url in self._urls]

    def __exit__(self, kind, *_):
        self._over.set()
        for one in self._asking if kind is None else ():
            one.result(timeout=60)


def at_full_size(cluster, num_ranks=4):
    def full():
        answer = httpx.get(cluster.direct_url + "/health", timeout=10)
        return answer.status_code == 200 and sum(
            rank["ready"] for role in answer.json()["roles"] for api in role["apis"] for rank in api.get("ranks", [])) == num_ranks
    wait_for(full, 60, lambda: httpx.get(cluster.direct_url + "/health").text)


def test_both_ports_give_the_tokens_of_one_engine(cluster):
    with Deployment() as alone:
        expected = [chat(alone.url, prompt, MODEL.removeprefix(str(ROOT) + "/")) for prompt in PROMPTS]
    for url in (cluster.url, cluster.direct_url):
        for stream in (False, True):
            assert [chat(url, prompt, stream=stream) for prompt in PROMPTS] == expected


def test_one_engine_per_rank_and_the_direct_port_in_serve_status(cluster):
    assert len(cluster.processes("manta engine")) == 4
    status = cluster.status()["deepseek-pd-wide-ep"]
    assert status["status"] == "RUNNING"
    names = list(status["deployments"])
    assert [name.split(":")[0] for name in names] == ["Prefill", "Decode", "Ingress"]
    assert names[-1] == f"Ingress:direct-port-{cluster.direct_port}"
    assert httpx.get(cluster.url + "/manta/endpoints").json()["direct"] == [cluster.direct_url]


def test_blocks_go_from_prefill_to_decode(cluster):
    def sent():
        return metric(cluster.direct_url, "manta_kv_transfer_bytes_total", role="decode", side="received")
    before = sent()
    chat(cluster.url, "A prompt nobody has asked before: 31 + 14?")
    assert sent() > before


def test_errors_and_ids_pass_through(cluster):
    answer = httpx.post(cluster.url + "/v1/completions", json={"model": "deepseek", "prompt": "x", "temperature": 99},
                        headers={"X-Request-Id": "mine"})
    assert answer.status_code == 400 and "temperature" in answer.json()["error"]["message"]
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert httpx.post(cluster.url + "/v1/completions", json={"model": "other", "prompt": "x"}).status_code == 404
    assert httpx.get(cluster.url + "/v1/models").json()["data"][0]["id"] == "deepseek"


def test_metrics_of_every_rank_are_with_rays_agent(cluster):
    def seen():
        page = httpx.get(f"http://{LOOPBACK}:{cluster.metrics_port}/metrics").text.splitlines()
        ranks = {(role, rank) for role in ("prefill", "decode") for rank in "01" for line in page
                 if line.startswith("ray_vllm_generation_tokens_total{") and f'node="{LOOPBACK}"' in line
                 and f'role="{role}"' in line and f'rank="{rank}"' in line}
        return len(ranks) == 4 and all(any(line.startswith(name + "{") for line in page) for name in (
            "ray_vllm_time_to_first_token_seconds_bucket", "ray_manta_router_requests_total"))
    wait_for(seen, 60, "metrics of four ranks and the router")


def test_lines_of_the_processes_are_in_rays_log_folder(cluster):
    text = "\n".join(text for name, text in cluster.logs().items() if name.startswith("worker"))
    for line in ("[prefill rank 0] ready at", "[decode rank 1] ready at", f"[router] direct port: {cluster.direct_url}"):
        assert line in text
    assert "all 2 ranks are there" in text  # the coordinator's own


def actor_of(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


slow = pytest.mark.slow


@pytest.mark.parametrize("victim", ["engine", pytest.param("actor", marks=slow), pytest.param("serve", marks=slow),
                                    pytest.param("coordinator", marks=slow)])
def test_streams_go_on_when_a_process_is_killed(cluster, victim):
    at_full_size(cluster)
    with Streams([cluster.url, cluster.direct_url] * 2):
        before = cluster.processes("manta serve")
        pid = cluster.processes("manta " + ("serve" if victim == "actor" else victim))[-1]
        os.kill(actor_of(pid) if victim == "actor" else pid, signal.SIGKILL)
        wait_for(lambda: not any(p == pid for p in processes_with(cluster.marker)), 15, "it ends")
        wait_for(lambda: status_of(cluster.url + "/health") == 200, 15, "served again")
    at_full_size(cluster)
    if victim in ("engine", "coordinator"):
        assert cluster.processes("manta serve") == before  # nobody else was touched


@slow
def test_a_killed_router_comes_back_on_its_port(cluster):
    pid, = cluster.processes("manta router")
    os.kill(pid, signal.SIGKILL)
    assert chat(cluster.url, PROMPTS[0]) == "17 + 25 = 42"  # waits for the new one
    assert chat(cluster.direct_url, PROMPTS[0]) == "17 + 25 = 42"


def test_a_changed_configuration_rolls_without_dropping_streams(cluster):
    old = set(cluster.processes("manta engine"))
    router = cluster.processes("manta router")
    config = meaningful(scaled())
    for role in ("prefill_config", "decode_config"):
        config["applications"][0]["args"][role]["engine_kwargs"]["max_num_seqs"] = 12
    with Streams([cluster.url, cluster.direct_url] * 2), Asking(cluster.url, cluster.direct_url):
        cluster.deploy(config)
        wait_for(lambda: not old & set(cluster.processes("manta engine")), 120, "the old ranks end")
    at_full_size(cluster)
    assert cluster.processes("manta router") == router
    assert chat(cluster.url, PROMPTS[0])


def with_a_second(config, **settings):
    """And an application of one rank, behind /two, whose front door scales."""
    role = copy.deepcopy(config["applications"][0]["args"]["decode_config"])
    role["model_loading_config"]["model_id"] = "second"
    role.update(engine_kwargs={"max_model_len": 2048, "max_num_seqs": 16, **settings}, experimental_configs={}, runtime_env={})
    config["applications"].append({
        "name": "second", "route_prefix": "/two", "import_path": "pd_dpep_builder:build_dp_openai_app",
        "args": {"llm_config": role, "direct_port": 0,
                 "ingress_deployment_config": {"autoscaling_config": {
                     "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2, "metrics_interval_s": 0.5,
                     "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 2}}}})
    return config


@slow
def test_a_mistake_is_in_serve_status(cluster):
    cluster.send(with_a_second(meaningful(scaled()), max_num_seq=1))

    def messages():
        second = cluster.rest().get("second", {"deployments": {}})
        return " ".join(d["message"] for d in second["deployments"].values())
    wait_for(lambda: "--max-num-seq: unknown option; nearest: --max-num-seqs" in messages(), 60, messages)
    assert chat(cluster.url, PROMPTS[0])


@slow
def test_a_second_application_beside_it(cluster):
    cluster.deploy(with_a_second(meaningful(scaled())))
    assert chat(cluster.url + "/two", PROMPTS[0], "second") == chat(cluster.url, PROMPTS[0])
    direct, = httpx.get(cluster.url + "/two/manta/endpoints").json()["direct"]
    assert chat(direct, PROMPTS[0], "second") == chat(cluster.url, PROMPTS[0])


@slow
def test_the_front_door_scales_with_what_is_under_way(cluster):
    def replicas():
        return len([r for r in cluster.rest()["second"]["deployments"]["Ingress"]["replicas"] if r["state"] == "RUNNING"])
    assert replicas() == 1
    asked_enough = threading.Event()

    def ask():
        while not asked_enough.is_set():
            body = {"model": "second", "prompt": [5, 6], "max_tokens": 200, "ignore_eos": True}
            assert httpx.post(cluster.url + "/two/v1/completions", json=body, timeout=120).status_code == 200
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(ask) for _ in range(12)]
        try:
            wait_for(lambda: replicas() == 3, 90, replicas)
        finally:
            asked_enough.set()
        for one in asking:
            one.result(timeout=120)
    wait_for(lambda: replicas() == 1, 90, replicas)


def halves(config):
    """Prefill and decode of one rank each, as applications of their own."""
    args = copy.deepcopy(config["applications"][0]["args"])
    for role in ("prefill", "decode"):
        half = args[f"{role}_config"]
        kwargs = {"max_model_len": 2048, "max_num_seqs": 16, "kv_transfer_config": half["engine_kwargs"]["kv_transfer_config"]}
        half.update(engine_kwargs=kwargs, experimental_configs={}, runtime_env={})
        config["applications"].append({
            "name": role, "route_prefix": f"/{role}", "import_path": f"pd_dpep_builder:build_{role}_app",
            "args": {f"{role}_config": half, "direct_port": 0, "ingress_deployment_config": {"num_replicas": 1}}})
    return config


@slow
def test_the_halves_as_applications_of_their_own(cluster):
    """Driven as a proxy of somebody else drives them: prefill's answer is passed on to decode."""
    cluster.deploy(halves(meaningful(scaled())))
    body = {"model": "deepseek", "prompt": "Sort 5 2 9 1.", "max_tokens": 16, "temperature": 0}
    first = httpx.post(cluster.url + "/prefill/v1/completions", timeout=60,
                       json={**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}})
    assert first.status_code == 200, first.text
    params = first.json()["kv_transfer_params"]
    second = httpx.post(cluster.url + "/decode/v1/completions", json={**body, "kv_transfer_params": params}, timeout=60)
    assert second.status_code == 200, second.text
    whole = httpx.post(cluster.url + "/v1/completions", json=body, timeout=60).json()
    assert second.json()["choices"][0]["text"] == whole["choices"][0]["text"]
    direct, = httpx.get(cluster.url + "/decode/manta/endpoints").json()["direct"]
    assert metric(direct, "manta_kv_transfer_bytes_total", side="received") > 0


def test_shutdown_leaves_no_process(cluster):
    cluster.shutdown_serve()
    wait_for(lambda: not cluster.processes("manta"), 90, lambda: cluster.processes("manta"))
