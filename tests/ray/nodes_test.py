"""The README's three commands and `serve run pd.yaml` on four nodes: a head, one for prefill, two for decode. A node dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from cluster import BIN, ROOT, VENV, processes_with, wait_for
from nodes import nodes
from pd_file import meaningful, scaled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(VENV is None, reason="MANTA_RAY_VENV is not set: ./dev test ray")]

# Runs on a node: answers the JSON list of [url, body or null] on stdin, all at once.
CLIENT = """
import concurrent.futures, httpx, json, sys
def ask(job):
    url, body = job
    try:
        answer = httpx.post(url, json=body, timeout=60) if body is not None else httpx.get(url, timeout=10)
        return [answer.status_code, answer.text]
    except httpx.HTTPError as e:
        return [0, repr(e)]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    json.dump(list(pool.map(ask, json.load(sys.stdin))), sys.stdout)
"""


class RayOfNodes:
    def __init__(self, there):
        self.head, self.prefill, *self.decode = there
        self.marker = f"manta-nodes-{os.getpid()}"
        self.env = {**os.environ, "MANTA_RAY_NUM_GPUS": "0", "RAY_USAGE_STATS_ENABLED": "0", "MANTA_TEST_MARK": self.marker,
                    "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.env.pop("MANTA_BINARY", None)

    def do(self, node, *command, timeout=120):
        env = {**self.env, "MANTA_TEST_MARK": self.marker + node.name}
        done = subprocess.run([*node.command, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def join(self, node, role, ranks):
        self.do(node, "ray", "start", f"--address={self.head.address}:6379", f'--resources={{"{role}": {ranks}}}')

    def ask(self, jobs):
        done = subprocess.run([*self.head.command, sys.executable, "-c", CLIENT], input=json.dumps(jobs), capture_output=True,
                              text=True, timeout=120, check=True)
        return json.loads(done.stdout)

    def health(self):
        (code, text), = self.ask([[f"http://{self.head.address}:8000/health", None]])
        ready = 0
        with contextlib.suppress(ValueError):
            ready = sum(rank["ready"] for role in json.loads(text)["roles"] for api in role["apis"] for rank in api.get("ranks", []))
        return code, ready

    def on(self, node, *words):
        out = []
        for pid in processes_with(self.marker + node.name):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    command = file.read().decode(errors="replace").split("\0")
                if " ".join([os.path.basename(command[0]), *command[1:]]).startswith(" ".join(words)):
                    out.append(pid)
        return out

    def end(self):
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in list(processes_with(self.marker)):
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            end = time.monotonic() + 4
            while list(processes_with(self.marker)) and time.monotonic() < end:
                time.sleep(0.1)


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    with nodes(4) as there:
        cluster = RayOfNodes(there)
        try:
            cluster.do(cluster.head, "ray", "start", "--head")
            cluster.join(cluster.prefill, "prefill", 2)
            for node in cluster.decode:
                cluster.join(node, "decode", 2)  # room for the ranks of one that dies
            config = meaningful(scaled(interface="eth0", per_node=1, replicas=(4, 4)))
            config["applications"][0]["args"]["prefill_config"]["experimental_configs"]["dp_size_per_node"] = 2
            config["applications"][0]["args"]["ingress_deployment_config"]["max_replicas_per_node"] = 1  # a router on each node
            path = ROOT / "build" / f"{cluster.marker}.yaml"  # /tmp is not the nodes' /tmp
            path.write_text(yaml.safe_dump(config))
            log = open(path.with_suffix(".log"), "w")
            serve = subprocess.Popen([*cluster.head.command, "serve", "run", str(path)], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                                     env={**cluster.env, "MANTA_TEST_MARK": cluster.marker + cluster.head.name})
            wait_for(lambda: serve.poll() is not None or cluster.health() == (200, 4), 180, lambda: path.with_suffix(".log").read_text()[-5000:])
            yield cluster
        finally:
            cluster.end()


def direct_urls(ray):
    (code, text), = ray.ask([[f"http://{ray.head.address}:8000/manta/endpoints", None]])
    return json.loads(text)["direct"] if code == 200 else []


def answers(ray, *urls):
    """What several requests to Ray's port on the head and to these URLs are answered: one text, if all is well."""
    body = {"model": "deepseek", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": "What is 17 + 25?"}]}
    got = ray.ask([[f"{url}/v1/chat/completions", body] for url in [f"http://{ray.head.address}:8000", *urls] for _ in range(4)])
    return {json.loads(text)["choices"][0]["message"]["content"] if code == 200 else text for code, text in got}


def test_ranks_are_packed_by_node_and_both_ports_answer(ray):
    assert [len(ray.on(node, "manta engine")) for node in (ray.head, ray.prefill, *ray.decode)] == [0, 2, 1, 1]
    assert [len(ray.on(node, "manta coordinator")) for node in (ray.head, ray.prefill, *ray.decode)] == [2, 0, 0, 0]
    direct = wait_for(lambda: direct_urls(ray), 10, "no direct port is known")
    assert answers(ray, *direct) == {"17 + 25 = 42"}
    (_, text), = ray.ask([[f"{direct[0]}/metrics", None]])
    received = [line for line in text.splitlines() if line.startswith("manta_kv_transfer_bytes_total") and 'role="decode"' in line
                and 'side="received"' in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in received) > 0  # over the wire, from another node


def test_the_ranks_of_a_dead_node_move_to_another(ray):
    kept, lost = ray.decode
    untouched = ray.on(kept, "manta serve")
    direct = [url for url in wait_for(lambda: len(direct_urls(ray)) == 4 and direct_urls(ray), 60, lambda: direct_urls(ray))
              if lost.address not in url]
    raylet, = ray.on(lost, "raylet")
    os.kill(raylet, signal.SIGKILL)
    died = time.monotonic()

    def after(what, condition, patience=60):
        wait_for(condition, patience, what)
        print(f"{time.monotonic() - died:.1f} s after the node died: {what}")
    after("its processes have ended", lambda: not ray.on(lost, "manta"))
    after("a direct port serves", lambda: ray.ask([[f"{direct[0]}/v1/completions", {"prompt": [5], "max_tokens": 2}]])[0][0] == 200)
    after("all ports serve", lambda: answers(ray, *direct) == {"17 + 25 = 42"})
    after("full size", lambda: ray.health() == (200, 4))
    assert set(untouched) <= set(ray.on(kept, "manta serve"))
    assert len(ray.on(kept, "manta engine")) == 2
