"""One deployment over two hosts: the three ways of balancing, refusals of nodes that do not fit, and the same tokens as one
engine gives."""

import contextlib
import json
import subprocess
import sys

import pytest

from deployment import ROOT, Deployment
from eval_prompts import prompts, request
from hosts import two_hosts

# Runs on a host: answers the JSON list of [url, body, headers] on stdin, all at once.
CLIENT = """
import concurrent.futures, httpx, json, sys
def post(job):
    url, body, headers = job
    answer = httpx.post(url, json=body, headers=headers, timeout=120) if body is not None else httpx.get(url)
    return [answer.status_code, answer.text]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    json.dump(list(pool.map(post, json.load(sys.stdin))), sys.stdout)
"""


def ask(host, jobs):
    done = subprocess.run([*(host.command if host else []), sys.executable, "-c", CLIENT], input=json.dumps(jobs),
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def completions(host, url, n, headers=None):
    """The token ids for the first n of the eval prompts."""
    jobs = []
    for path, body in (request(line, max_tokens=24) for line in prompts(600)[:n]):
        body.pop("tools", None)
        jobs.append([url + path, body, headers or {}])
    answers = ask(host, jobs)
    assert {code for code, _ in answers} == {200}, answers[0]
    return [json.loads(body)["choices"][0]["token_ids"] for _, body in answers]


def per_engine(host, url, name):
    (code, text), = ask(host, [[url + "/metrics", None, {}]])
    assert code == 200
    return {line.split('engine="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
            for line in text.splitlines() if line.startswith(name + "{")}


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def expected():
    with Deployment() as d:
        return completions(None, d.url, 40)


@contextlib.contextmanager
def nodes(hosts, head, other, common=()):
    """A node on each host, all settings of `common` on both; ends with both, the second one first asked."""
    address = ["--data-parallel-address", hosts[0].address, "--data-parallel-rpc-port", "29571"]
    first = Deployment("-dp", "2", *address, *common, *head, prefix=hosts[0].command)
    second = Deployment("-dp", "2", *address, *common, *other, prefix=hosts[1].command)
    second.start()  # the order must not matter
    first.start()
    try:
        yield first.wait_ready(), second.wait_ready()
        first.terminate()
        second.terminate()
        for d in (first, second):
            assert d.process.wait(timeout=60) == 0, "".join(d.log[-30:])
    finally:
        for d in (first, second):
            if d.process.poll() is None:
                d.process.kill()
                d.process.wait()


EXPERTS = pytest.mark.parametrize("common", [(), ("--enable-expert-parallel",)], ids=["dense", "experts"])


def both_worked(counts):
    return sorted(counts) == ["0", "1"] and min(counts.values()) > 0


@EXPERTS
def test_internal(hosts, expected, common):
    """The head's API serves the engines of both hosts."""
    with nodes(hosts, ["-dpl", "1"], ["-dpl", "1", "-dpr", "1", "--headless"], common) as (head, other):
        assert other.url == ""
        assert completions(hosts[0], head.url, 40) == expected
        assert both_worked(per_engine(hosts[0], head.url, "vllm:generation_tokens_total"))
        rows = per_engine(hosts[0], head.url, "manta_ep_dispatch_rows_total")
        assert both_worked(rows) if common else not any(rows.values()), rows
        # A rank can be asked for; one that is not there is the client's mistake.
        before = per_engine(hosts[0], head.url, "vllm:generation_tokens_total")["0"]
        assert completions(hosts[0], head.url, 3, {"X-data-parallel-rank": "1"}) == expected[:3]
        assert per_engine(hosts[0], head.url, "vllm:generation_tokens_total")["0"] == before
        (code, body), = ask(hosts[0], [[head.url + "/v1/completions", {"prompt": [5], "max_tokens": 1},
                                        {"X-data-parallel-rank": "2"}]])
        assert code == 400 and "this server has ranks 0 to 1" in body


@EXPERTS
def test_balanced_outside(hosts, expected, common):
    """One rank per node, with an API of its own that serves no other: what -dpl 1 makes of hybrid balancing."""
    with nodes(hosts, ["-dpl", "1", "-dph"], ["-dpl", "1", "-dpr", "1"], common) as (head, other):
        for host, node, rank in ((hosts[0], head, "0"), (hosts[1], other, "1")):
            assert completions(host, node.url, 20) == expected[:20]
            assert list(per_engine(host, node.url, "vllm:generation_tokens_total")) == [rank]
            rows = per_engine(host, node.url, "manta_ep_dispatch_rows_total")
            assert (rows[rank] > 0) == bool(common), rows


def test_hybrid(hosts, expected):
    with nodes(hosts, ["-dp", "4", "-dpl", "2", "--data-parallel-hybrid-lb", "--api-server-count", "2"],
               ["-dp", "4", "-dpl", "2", "--data-parallel-start-rank", "2"]) as (head, other):
        for host, node, ranks in ((hosts[0], head, ["0", "1"]), (hosts[1], other, ["2", "3"])):
            assert completions(host, node.url, 20) == expected[:20]
            counts = per_engine(host, node.url, "vllm:generation_tokens_total")
            assert sorted(counts) == ranks and min(counts.values()) > 0
            # The header counts from the node's first rank.
            completions(host, node.url, 1, {"X-data-parallel-rank": "1"})


@pytest.mark.slow
def test_all_eval_prompts_with_experts_on_both_hosts(hosts):
    with Deployment() as one:
        expected = completions(None, one.url, 600)
    with nodes(hosts, ["-dp", "4", "-dpl", "2", "--data-parallel-hybrid-lb"],
               ["-dp", "4", "-dpl", "2", "--data-parallel-start-rank", "2"], ["--enable-expert-parallel"]) as running:
        for host, node in zip(hosts, running):
            assert completions(host, node.url, 600) == expected
            rows = per_engine(host, node.url, "manta_ep_dispatch_rows_total")
            assert min(rows.values()) > 0


def test_external_with_a_coordinator_by_hand(hosts, expected):
    coordinator = subprocess.Popen(
        [*hosts[0].command, str(Deployment().command[0]), "coordinator", "--listen", f"tcp:{hosts[0].address}:29572"],
        cwd=ROOT)
    try:
        joined = ["--coordinator", f"tcp:{hosts[0].address}:29572"]
        with nodes(hosts, ["--data-parallel-rank", "0"], ["--data-parallel-rank", "1"], joined) as (head, other):
            assert completions(hosts[0], head.url, 10) == expected[:10]
            assert completions(hosts[1], other.url, 10) == expected[:10]
    finally:
        coordinator.terminate()
        assert coordinator.wait(timeout=10) == 0


def test_a_node_with_another_configuration_is_refused_by_its_key(hosts):
    address = ["-dp", "2", "-dpl", "1", "--data-parallel-address", hosts[0].address, "--data-parallel-rpc-port", "29573"]
    first = Deployment(*address, prefix=hosts[0].command)
    first.start()
    second = Deployment(*address, "-dpr", "1", "--headless", "--max-num-seqs", "7", prefix=hosts[1].command)
    try:
        ended = subprocess.run(second.command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1
        assert "max_num_seqs = 7 here, max_num_seqs = 256 in the deployment" in ended.stdout + ended.stderr
    finally:
        first.process.kill()
        first.process.wait()


def test_the_head_goes_and_takes_its_headless_nodes_along(hosts):
    with nodes(hosts, ["-dpl", "1"], ["-dpl", "1", "-dpr", "1", "--headless"]) as (head, other):
        head.terminate()
        assert other.process.wait(timeout=30) == 0, "".join(other.log[-30:])
