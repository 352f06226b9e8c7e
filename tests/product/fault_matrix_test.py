"""Every process of a deployment, every way it can fail, at every kind of moment: named, the same tokens or a clear end,
serving again, nothing left behind. Each kind of fault once in every run, all cells with --all.

A partition needs two network namespaces and is skipped where they are not permitted. It parts an engine from the rest,
or the coordinator from all; an api process cut off from an engine is the same cut seen from the other side."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest

from deployment import MANTA, ROOT, Deployment, metric, wait_until
from expert_parallel_test import FLAGS, Streams, idle, prompts, shared_memory
from hosts import run, two_hosts
from nodes_test import ask, per_engine

EPLB = {"step_interval": 4, "window_size": 4, "num_redundant_experts": 4, "min_gain": 0}
REARRANGING = ["--enable-eplb", "--eplb-config", json.dumps(EPLB)]
SMALL_CHUNKS = ["--max-num-batched-tokens", 64]
MAX_TOKENS = {"idle": 48, "prefill": 16, "decode": 160, "rearranging": 160}
FAULTS = ["kill", "stop 3 s", "stop for ever"]
PHASES = ["idle", "prefill", "decode", "rearranging"]
SHORT = {("engine", "kill", "rearranging"), ("engine", "stop 3 s", "decode"), ("engine", "stop for ever", "prefill"),
         ("coordinator", "kill", "decode"), ("coordinator", "stop for ever", "rearranging"), ("api", "kill", "idle"),
         ("api", "stop for ever", "idle")}


def texts_of(phase):
    if phase == "prefill":
        return [f"{i}: " + "what is to be computed here takes several steps, " * 8 for i in range(24)]
    return prompts(16)


def flags_of(phase):
    return [*FLAGS, *SMALL_CHUNKS, *(REARRANGING if phase == "rearranging" else [])]


@pytest.fixture(scope="module")
def expected():
    known = {}

    def texts(phase):
        if phase not in known:
            with Deployment(*FLAGS, *SMALL_CHUNKS) as one:
                for each in PHASES if not known else [phase]:
                    known[each] = Streams(one.url, texts_of(each), MAX_TOKENS[each]).texts()
        return known[phase]

    return texts


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_phase(d, phase, streams):
    if phase == "prefill":
        wait_until(lambda: metric(d.url, "vllm:num_requests_running") > 0, "a prompt in work")
    if phase in ("decode", "rearranging"):
        streams.wait_until_all_stream()
    if phase == "rearranging":
        wait_until(lambda: metric(d.url, "manta_eplb_rearrangements_total") > 0, "experts that move")


def apply_fault(d, what, fault):
    pid = d.children(what)[-1]
    os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    if fault == "stop 3 s":
        time.sleep(3)  # the fault itself, below rank_deadline_s
        os.kill(pid, signal.SIGCONT)
    return pid


def serves(d, texts, max_tokens, wanted):
    try:
        return Streams(d.url, texts, max_tokens).texts() == wanted
    except OSError:
        return False


def all_cells():
    for what in ("api", "engine", "coordinator"):
        for fault in FAULTS:
            for phase in PHASES:
                marks = [] if (what, fault, phase) in SHORT else [pytest.mark.slow]
                yield pytest.param(what, fault, phase, marks=marks, id=f"{what}-{fault}-{phase}".replace(" ", "_"))


@pytest.mark.parametrize("what, fault, phase", list(all_cells()))
def test_fault(expected, what, fault, phase):
    texts, max_tokens, wanted = texts_of(phase), MAX_TOKENS[phase], expected(phase)
    group = ["-dp", 2, "--enable-expert-parallel", *flags_of(phase), "--port", free_port()]
    with Deployment(*group) as d:
        before = {kind: d.children(kind) for kind in ("api", "engine", "coordinator")}
        streams = None if phase == "idle" else Streams(d.url, texts, max_tokens)
        wait_for_phase(d, phase, streams)
        pid = apply_fault(d, what, fault)
        lasting = fault != "stop 3 s"
        if streams and (what != "api" or not lasting):
            assert streams.texts() == wanted
        elif streams:
            streams.texts()  # they end
        if lasting:
            wait_until(lambda: pid not in d.children(what) and len(d.children(what)) == len(before[what]), "replaced")
            assert f"(pid {pid}) ended" in d.text(), "named"
        if fault == "stop for ever":
            assert "it was put out" in d.text()
        if fault == "stop 3 s" and what != "coordinator":
            assert f"pid {pid}): no heartbeat for" in d.text(), "named while it was silent"
        wait_until(lambda: serves(d, texts[:4], max_tokens, wanted[:4]), "the same tokens again")
        wait_until(lambda: metric(d.url, "manta_ep_group_ranks") == 4, "both ranks in the group")
        idle(d)
        for kind, pids in before.items():
            assert d.children(kind) == pids or (kind == what and lasting), f"{kind} was restarted"
        every = [p for kind in before for p in d.children(kind)] + [pid]
    assert [p for p in every if pathlib.Path(f"/proc/{p}").exists()] == []
    assert shared_memory() == []


# ---- partition ----

@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as pair:
        yield pair


def cable(host, state):
    ok, why = run("ip", "-n", host.name, "link", "set", host.interface, state)
    assert ok, why


@contextlib.contextmanager
def engine_over_there(hosts, flags):
    """Rank 0, the api and the coordinator here, rank 1 over there."""
    common = ["-dp", 2, "-dpl", 1, "--data-parallel-address", hosts[0].address, "--data-parallel-rpc-port", 29574,
              "--enable-expert-parallel", *flags]
    there = Deployment(*common, "-dpr", 1, "--headless", prefix=hosts[1].command)
    there.start()
    with Deployment(*common, prefix=hosts[0].command) as here:
        there.wait_ready()
        try:
            yield here
        finally:
            there.process.kill()
            there.process.wait()


@contextlib.contextmanager
def coordinator_over_there(hosts, flags):
    address = f"tcp:{hosts[1].address}:29575"
    coordinator = subprocess.Popen([*hosts[1].command, MANTA, "coordinator", "--listen", address], cwd=ROOT)
    try:
        with Deployment("-dp", 2, "--coordinator", address, "--enable-expert-parallel", *flags,
                        prefix=hosts[0].command) as here:
            yield here
    finally:
        coordinator.terminate()
        coordinator.wait()


def requests_of(url, phase, n=None):
    return [[url + "/v1/completions", {"prompt": text, "max_tokens": MAX_TOKENS[phase], "ignore_eos": True,
                                       "seed": i, "temperature": i % 2}, {}]
            for i, text in enumerate(texts_of(phase)[:n])]


def texts_in(answers):
    assert {code for code, _ in answers} == {200}, answers[0]
    return [json.loads(body)["choices"][0]["text"] for _, body in answers]


def started(host, url, phase):
    names = {"prefill": "vllm:num_requests_running", "decode": "vllm:generation_tokens_total",
             "rearranging": "manta_eplb_rearrangements_total"}
    return sum(per_engine(host, url, names[phase]).values()) > 0


SHORT_PARTITIONS = {("engine", "decode")}


@pytest.mark.parametrize("what, phase", [
    pytest.param(what, phase, marks=[] if (what, phase) in SHORT_PARTITIONS else [pytest.mark.slow])
    for what in ("engine", "coordinator") for phase in PHASES])
def test_partition(expected, hosts, what, phase):
    wanted = expected(phase)
    over_there = engine_over_there if what == "engine" else coordinator_over_there
    with over_there(hosts, flags_of(phase)) as d, concurrent.futures.ThreadPoolExecutor(1) as pool:
        wait_until(lambda: sum(per_engine(hosts[0], d.url, "manta_ep_group_ranks").values()) == 4, "a group of 2")
        asked = None
        if phase != "idle":
            asked = pool.submit(ask, hosts[0], requests_of(d.url, phase))
            wait_until(lambda: started(hosts[0], d.url, phase), phase)
        cable(hosts[1], "down")
        if what == "engine":
            if asked:
                assert texts_in(asked.result()) == wanted, "the rank that is left does all"
            wait_until(lambda: "the group goes on" in d.text(), "without the other rank")
            assert texts_in(ask(hosts[0], requests_of(d.url, phase, 4))) == wanted[:4]
        else:
            wait_until(lambda: "answered no heartbeat" in d.text(), "the silent coordinator is named")
        cable(hosts[1], "up")
        if what == "coordinator" and asked:
            assert texts_in(asked.result()) == wanted
        wait_until(lambda: sum(per_engine(hosts[0], d.url, "manta_ep_group_ranks").values()) == 4, "both are back")
        assert texts_in(ask(hosts[0], requests_of(d.url, phase, 4))) == wanted[:4]
