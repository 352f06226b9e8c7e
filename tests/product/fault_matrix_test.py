"""Every process of a deployment, every way it can fail, at every kind of moment: named, the same tokens or a clear end,
serving again, nothing left behind. Each kind of fault once in every run, all cells with --all.

A partition needs two network namespaces and is skipped where they are not permitted. It parts an engine, the coordinator
or the api process from all the others."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import socket
import time

import pytest

from deployment import MANTA, Deployment, Process, metric, wait_until
from expert_parallel_test import FLAGS, Streams, idle, num_descriptors, prompts, shared_memory
from fault_times import FirstAnswer, whole_and_answering
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
        return [f"{i}: " + "what is to be computed here takes several steps, " * 8 for i in range(64)]
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
    """(pid, when it was done, when it was over: the process can serve again from then on, None: when it is replaced)"""
    pid = d.children(what)[-1]
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    if fault != "stop 3 s":
        return pid, begin, None
    time.sleep(3)  # the fault itself, below rank_deadline_s
    os.kill(pid, signal.SIGCONT)
    return pid, begin, time.monotonic()


def serves(d, texts, max_tokens, wanted):
    try:
        return Streams(d.url, texts, max_tokens).texts() == wanted
    except OSError:
        return False


def descriptors(d):
    pids = [d.process.pid, *(p for kind in ("api", "engine", "coordinator") for p in d.children(kind))]
    return {pid: num_descriptors(pid) for pid in pids}


def all_cells():
    for what in ("api", "engine", "coordinator"):
        for fault in FAULTS:
            for phase in PHASES:
                marks = [] if (what, fault, phase) in SHORT else [pytest.mark.slow]
                yield pytest.param(what, fault, phase, marks=marks, id=f"{what}-{fault}-{phase}".replace(" ", "_"))


@pytest.mark.parametrize("what, fault, phase", list(all_cells()))
def test_fault(expected, fault_times, what, fault, phase):
    texts, max_tokens, wanted = texts_of(phase), MAX_TOKENS[phase], expected(phase)
    group = ["-dp", 2, "--enable-expert-parallel", *flags_of(phase), "--port", free_port()]
    with Deployment(*group) as d:
        before = {kind: d.children(kind) for kind in ("api", "engine", "coordinator")}
        Streams(d.url, prompts(8), 8).texts()  # connections that a deployment opens once are open
        open_before = descriptors(d)
        again = FirstAnswer(lambda: whole_and_answering(d.url, 2))
        streams = None if phase == "idle" else Streams(d.url, texts, max_tokens)
        wait_for_phase(d, phase, streams)
        pid, begin, over = apply_fault(d, what, fault)
        replaced = fault != "stop 3 s"
        if replaced:
            wait_until(lambda: d.line_at(f"{what}.* restarted as pid", begin), "replaced")
            over = d.line_at(f"{what}.* restarted as pid", begin)
        again.begin(over)
        if streams and (what != "api" or not replaced):
            assert streams.texts() == wanted
        elif streams:
            streams.texts()  # they end
        named = d.line_at(rf"pid {pid}\)", begin)
        assert named, "named"
        fault_times.note((what, fault, phase), named - begin, again.seconds())
        check_words(d.text(), what, fault, pid)
        wait_until(lambda: serves(d, texts[:4], max_tokens, wanted[:4]), "the same tokens again")
        idle(d)
        for kind, pids in before.items():
            assert d.children(kind) == pids or (kind == what and replaced), f"{kind} was restarted"
        nothing_left_open(d, open_before)
        every = [p for kind in before for p in d.children(kind)] + [pid]
    assert [p for p in every if pathlib.Path(f"/proc/{p}").exists()] == []
    assert shared_memory() == []


def check_words(log, what, fault, pid):
    silent = f"pid {pid}): no heartbeat was answered for" if what == "coordinator" else f"pid {pid}): no heartbeat for"
    if fault == "kill":
        assert f"(pid {pid}) ended" in log
    else:
        assert silent in log, "named while it was silent"
    if fault == "stop for ever":
        assert log.index(silent) < log.index(f"(pid {pid}) ended: killed by signal 9"), "before its deadline"
        assert "it was put out" in log


def nothing_left_open(d, before):
    """Of those that live on."""
    def leaks():
        return {pid: (before[pid], n) for pid, n in descriptors(d).items() if n > before.get(pid, n) + 1}
    wait_until(lambda: not leaks(), f"descriptors leaked: {leaks()}")


# ---- partition ----

@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as pair:
        yield pair


def cable(host, state):
    ok, why = run("ip", "-n", host.name, "link", "set", host.interface, state)
    assert ok, why


@contextlib.contextmanager
def cut_off(host):
    cable(host, "down")
    try:
        yield
    finally:
        cable(host, "up")


@contextlib.contextmanager
def engine_over_there(hosts, flags):
    """Rank 0, the api and the coordinator here, rank 1 over there."""
    common = ["-dp", 2, "-dpl", 1, "--data-parallel-address", hosts[0].address, "--data-parallel-rpc-port", 29574,
              "--enable-expert-parallel", *flags]
    there = Deployment(*common, "-dpr", 1, "--headless", prefix=hosts[1].command)
    there.start()
    with Deployment(*common, prefix=hosts[0].command) as here:
        there.wait_ready()
        with ended_by_hand(there):
            yield here, here, "engine rank 1 .*: no heartbeat for"


@contextlib.contextmanager
def coordinator_over_there(hosts, flags):
    address = f"tcp:{hosts[1].address}:29575"
    with ended_by_hand(Process([*hosts[1].command, MANTA, "coordinator", "--listen", address])), \
            Deployment("-dp", 2, "--coordinator", address, "--enable-expert-parallel", *flags,
                       prefix=hosts[0].command) as here:
        yield here, here, "coordinator .*: no heartbeat was answered for"


@contextlib.contextmanager
def api_over_there(hosts, flags):
    """The api process here, everything else over there."""
    address = f"tcp:{hosts[1].address}:29576"
    common = ["-dp", 2, "--coordinator", address, "--enable-expert-parallel", *flags]
    coordinator = Process([*hosts[1].command, MANTA, "coordinator", "--listen", address])
    there = Deployment(*common, "-dpl", 2, "-dpr", 0, "--headless", prefix=hosts[1].command)
    with ended_by_hand(coordinator), ended_by_hand(there), \
            Deployment(*common, "-dpl", 0, prefix=hosts[0].command) as here:
        there.wait_ready()
        yield here, coordinator, "api rank 0 .*: no heartbeat for"


@contextlib.contextmanager
def ended_by_hand(process):
    """Started if it was not; nobody asks it to drain."""
    if process.process is None:
        process.start()
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


def requests_of(url, phase, n=None):
    return [[url + "/v1/completions", {"prompt": text, "max_tokens": MAX_TOKENS[phase], "ignore_eos": True,
                                       "seed": i, "temperature": i % 2}, {}]
            for i, text in enumerate(texts_of(phase)[:n])]


def texts_in(answers):
    assert {code for code, _ in answers} == {200}, answers[0]
    return [json.loads(body)["choices"][0]["text"] for _, body in answers]


def told_clearly(answers, wanted):
    """Each has its tokens, or why not and what to do."""
    for (code, body), text in zip(answers, wanted):
        answer = json.loads(body)
        if code == 200:
            assert answer["choices"][0]["text"] == text
        else:
            what_to_do = answer["error"]["message"].split("; ")[-1]
            assert code == 503 and what_to_do in ("send it again", "retry in a moment."), (code, body)


def started(host, url, phase):
    names = {"prefill": "vllm:num_requests_running", "decode": "vllm:generation_tokens_total",
             "rearranging": "manta_eplb_rearrangements_total"}
    return sum(per_engine(host, url, names[phase]).values()) > 0


def whole_group(host, url):
    return sum(per_engine(host, url, "manta_ep_group_ranks").values()) == 4


def answers_as_a_whole(host, url, phase):
    try:
        return whole_group(host, url) and ask(host, requests_of(url, phase, 1))[0][0] == 200
    except AssertionError:  # it did not answer
        return False


def nothing_held(host, url):
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return not any(sum(per_engine(host, url, name).values()) for name in names)


OVER_THERE = {"api": api_over_there, "engine": engine_over_there, "coordinator": coordinator_over_there}
SHORT_PARTITIONS = {("engine", "decode"), ("api", "decode")}


@pytest.mark.parametrize("what, phase", [
    pytest.param(what, phase, marks=[] if (what, phase) in SHORT_PARTITIONS else [pytest.mark.slow])
    for what in OVER_THERE for phase in PHASES])
def test_partition(expected, fault_times, hosts, what, phase):
    wanted = expected(phase)
    here = hosts[0]
    with OVER_THERE[what](hosts, flags_of(phase)) as (d, witness, name), concurrent.futures.ThreadPoolExecutor(1) as pool:
        wait_until(lambda: whole_group(here, d.url), "a group of 2")
        again = FirstAnswer(lambda: answers_as_a_whole(here, d.url, phase))
        asked = None
        if phase != "idle":
            asked = pool.submit(ask, here, requests_of(d.url, phase))
            wait_until(lambda: started(here, d.url, phase), phase)
        cut = time.monotonic()
        with cut_off(hosts[1]):
            wait_until(lambda: witness.line_at(name, cut), "named")
            if what == "engine":
                if asked:
                    assert texts_in(asked.result()) == wanted, "the rank that is left does all"
                wait_until(lambda: "the group goes on" in d.text(), "without the other rank")
                assert texts_in(ask(here, requests_of(d.url, phase, 4))) == wanted[:4]
            elif what == "api":
                if asked:
                    told_clearly(asked.result(), wanted)
                wait_until(lambda: ask(here, [[d.url + "/health", None, {}]])[0][0] == 503, "it knows that nobody is there")
                wait_until(lambda: witness.line_at("api rank 0 .*: (gone|no heartbeat for 5)", cut), "and is gone there")
            else:
                wait_until(lambda: d.line_at("trying again", cut), "the coordinator is given up")
        again.begin()
        if what == "coordinator" and asked:
            assert texts_in(asked.result()) == wanted
        fault_times.note((what, "partition", phase), witness.line_at(name, cut) - cut, again.seconds())
        assert texts_in(ask(here, requests_of(d.url, phase, 4))) == wanted[:4]
        wait_until(lambda: nothing_held(here, d.url), "requests or blocks stayed behind")
