"""`manta up FILE.yaml`: prefill, decode and router of a pd.yaml on this machine."""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import time
import urllib.request

import pytest
import yaml
from deployment import LOCAL, MANTA, ROOT, Deployment, Up, metric, wait_until, write_yaml

PROMPTS = ["What is 17 + 25?", "What is the capital of France?", "Sort 5 2 9 1.", "Say nothing."]


def ask(url, model, content, **more):
    body = {"model": model, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": content}], **more}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def refused(path, *flags):
    ended = subprocess.run([str(MANTA), "up", str(path), *flags], cwd=ROOT, capture_output=True, text=True, errors="replace",
                           timeout=60)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def descendants(pid):
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue  # it ended meanwhile
    return [child for child, parent in parents.items() if parent == pid]


def test_the_local_file_answers_as_one_deployment_would(tmp_path):
    ready = tmp_path / "ready.json"
    with Deployment("--served-model-name", "tiny-v3") as colocated:
        expected = [ask(colocated.url, "tiny-v3", p) for p in PROMPTS]
    with Up(LOCAL, "--ready-file", ready) as up:
        assert json.loads(ready.read_text()) == {"url": up.url, "pid": up.process.pid}
        assert [ask(up.url, "tiny-v3", p) for p in PROMPTS] == expected
        kinds = [len(up.children(kind)) for kind in ("coordinator", "engine", "api", "router")]
        assert kinds == [2, 6, 2, 1]
        curl = re.search(r"^  (curl .*)$", up.text(), re.M)
        assert curl, up.text()
        streamed = subprocess.run(["sh", "-c", curl.group(1) + " -s -S"], capture_output=True, text=True, timeout=60)
        assert streamed.returncode == 0 and streamed.stdout.rstrip().endswith("data: [DONE]"), streamed


def test_a_dead_rank_and_a_dead_router_come_back():
    with Up() as up:
        for what, index in (("engine", 0), ("engine", 5), ("router", 0)):
            count = up.text().count("ready again")
            pid = up.kill(what, index)
            wait_until(lambda: up.text().count("ready again") > count, f"{what} is not replaced")
            assert pid not in up.children(what)
        # The port was drawn, so the new router says where it is now.
        assert len(up.children("engine")) == 6


def test_no_process_outlives_its_parent():
    up = Up()
    up.__enter__()
    children = descendants(up.process.pid)
    assert len(children) == 11
    up.process.send_signal(signal.SIGKILL)
    up.process.wait()
    wait_until(lambda: not any(pathlib.Path(f"/proc/{pid}/cmdline").exists() and
                               pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children), "left behind")


def test_what_does_not_fit_is_an_error_and_with_the_flag_a_line(tmp_path):
    def for_a_cluster(args, file):
        for role, ranks in (("prefill_config", 16), ("decode_config", 32)):
            args[role]["engine_kwargs"].update(data_parallel_size=ranks, max_model_len="16384")
            args[role]["experimental_configs"] = {"dp_size_per_node": 8}
            args[role]["runtime_env"] = {"env_vars": {"GLOO_SOCKET_IFNAME": "nosuch0"}}
        args["ingress_deployment_config"] = {"autoscaling_config": {"min_replicas": 64, "max_replicas": 64}}

    path = write_yaml(tmp_path, for_a_cluster)
    expected = ["ingress_deployment_config replicas: 64", "prefill_config.data_parallel_size: 16",
                "prefill_config.dp_size_per_node: 8", "prefill_config.max_model_len: 16384",
                "prefill_config.GLOO_SOCKET_IFNAME: nosuch0", "decode_config.data_parallel_size: 32"]
    problem = refused(path)
    assert "--scale-to-fit" in problem
    for line in expected:
        assert line + " does not fit (" in problem
    with Up(path, "--scale-to-fit", "--model", "models/tiny-v3") as up:
        for line, used in zip(expected, ["1", "2", "2", "4096", "lo", "4"]):
            assert f"{line} -> {used} (" in up.text()
        assert len(up.children("engine")) == 6
        assert ask(up.url, "tiny-v3", PROMPTS[0])


def test_the_clusters_file_runs_here_when_shrunk(tmp_path):
    file = yaml.safe_load((ROOT / "deploy/pd.yaml").read_text())
    prefill = file["applications"][0]["args"]["prefill_config"]["runtime_env"]["env_vars"]
    simulated = tmp_path / "simulated.yaml"
    simulated.write_text(yaml.safe_dump(file))
    del prefill["VLLM_MOE_ROUTING_SIMULATION_STRATEGY"]
    real = tmp_path / "real.yaml"
    real.write_text(yaml.safe_dump(file))
    with Deployment("--served-model-name", "deepseek") as colocated:
        expected = [ask(colocated.url, "deepseek", p) for p in PROMPTS]
    for path in (simulated, real):
        with Up(path, "--scale-to-fit", "--model", "models/tiny-v3") as up:
            answers = [ask(up.url, "deepseek", p) for p in PROMPTS]
            assert ("prefill: OUTPUTS ARE MEANINGLESS" in up.text()) == (path == simulated)
            assert answers == expected or path == simulated
            assert metric(up.url, "manta_kv_transfer_bytes_total", role="decode", connector="NixlConnector") > 0
            assert metric(up.url, "manta_ep_dispatch_rows_total", role="decode") > 0


def misspell_section(args, file):
    args["decode_config"]["engine_kwarg"] = {}


def misspell_setting(args, file):
    args["decode_config"]["engine_kwargs"]["max_num_seq"] = 1


def misspell_object_key(args, file):
    args["decode_config"]["engine_kwargs"]["eplb_config"] = {"window_sise": 1}


def give_the_port_twice(args, file):
    args["prefill_config"]["engine_kwargs"]["port"] = 80


def two_applications(args, file):
    file["applications"] *= 2


@pytest.mark.parametrize("change, said", [
    (misspell_section, "decode_config.engine_kwarg: unknown key; nearest: engine_kwargs"),
    (misspell_setting, "max_num_seq: unknown key (decode_config); nearest: max_num_seqs"),
    (misspell_object_key, "eplb_config.window_sise: unknown key (decode_config); nearest: eplb_config.window_size"),
    (give_the_port_twice, "prefill_config.engine_kwargs.port: the router has the address"),
    (two_applications, "applications: must be a list of one application"),
])
def test_a_mistake_is_named_before_anything_starts(tmp_path, change, said):
    assert said in refused(write_yaml(tmp_path, change))


def test_bytes_that_are_no_yaml_are_named(tmp_path):
    for content in (b"", b"\x00\xff", b"a: [1", b"- 1\n- 2\n", b"applications: 7\n", b"a: &x [*x, *x]\n"):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content)
        assert str(path) in refused(path)
    assert "cannot be read" in refused(tmp_path / "missing.yaml")


def test_a_terminal_gets_a_table_redrawn_in_place():
    screen, terminal = pty.openpty()
    process = subprocess.Popen([str(MANTA), "up", str(LOCAL), "--port", "0"], cwd=ROOT, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while b"data" not in seen and b"try it" not in seen:
            seen += os.read(screen, 4096)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                piece = os.read(screen, 4096)
            except OSError:  # how a terminal says that its last process is gone
                break
            seen += piece
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(screen)
    text = seen.decode(errors="replace")
    table = text[:text.index("serves tiny-v3")].rsplit("\x1b[J", 1)[1]
    for name in ("prefill coordinator", "prefill engine 1", "decode engine 3", "decode api", "router"):
        assert re.search(rf"^  {name} +ready\r$", table, re.M), text
    assert "all processes have ended" in text


def test_caches_that_do_not_fit_are_named_at_the_start(tmp_path):
    def change(args, file):
        args["decode_config"]["engine_kwargs"]["block_size"] = 32

    with Up(write_yaml(tmp_path, change)) as up:
        assert re.search(r'cache rows do not fit .*: block_size is "64" there and "32" at decode', up.text()), up.text()
        assert ask(up.url, "tiny-v3", PROMPTS[0])
