"""/metrics as its readers take it: promtool's rules, and a real Prometheus that scrapes a deployment of two engines."""

import json
import socket
import subprocess
import time

import httpx
import pytest

from deployment import ROOT, Deployment, metric, wait_until

TOOLS = ROOT / ".deps/debian/usr/bin"


@pytest.fixture(scope="module")
def deployment():
    with Deployment("-dp", "2") as running:
        for i in range(6):
            answer = httpx.post(running.url + "/v1/completions",
                                json={"prompt": [5, 6, 7 + i], "max_tokens": 8, "ignore_eos": True})
            assert answer.status_code == 200
        yield running


def samples(text):
    """{name: {labels: value}} of an exposition."""
    out = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name, _, labels = series.partition("{")
            out.setdefault(name, {})[labels.rstrip("}")] = float(value)
    return out


def test_promtool_has_nothing_to_say(deployment):
    text = httpx.get(deployment.url + "/metrics").text
    check = subprocess.run([TOOLS / "promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    # vLLM's names have a colon, which promtool would keep for recording rules; dashboards want them as they are.
    complaints = [line for line in check.stderr.splitlines()
                  if not (line.startswith("vllm:") and line.endswith("metric names should not contain ':'"))]
    assert complaints == []
    assert check.returncode in (0, 3), check  # 3: lint, and all of it was looked at above


def test_every_engine_counts_its_own(deployment):
    got = samples(httpx.get(deployment.url + "/metrics").text)
    for name in ("vllm:prompt_tokens_total", "vllm:request_queue_time_seconds_count",
                 "vllm:request_prefill_time_seconds_count", "vllm:request_decode_time_seconds_count",
                 "vllm:request_inference_time_seconds_count", "manta_engine_steps_total"):
        by_engine = {e: v for labels, v in got[name].items() for e in "01" if f'engine="{e}"' in labels}
        assert sorted(by_engine) == ["0", "1"] and min(by_engine.values()) > 0, (name, got[name])
    assert sum(got["vllm:generation_tokens_total"].values()) == 6 * 8
    split = got["manta_engine_step_seconds_total"]
    for part in ("schedule", "forward", "dispatch", "combine", "sample"):
        assert sum(v for labels, v in split.items() if f'part="{part}"' in labels) > 0, part
    wait_until(lambda: metric(deployment.url, "manta_engine_step_duration_seconds_count") ==
               metric(deployment.url, "manta_engine_steps_total"), "each step is in one bucket")
    for name in ("manta_ep_dispatch_rows_total", "manta_ep_dispatch_bytes_total", "manta_dummy_steps_total",
                 "manta_membership_epoch", "manta_routing_simulated", "manta_requests_resubmitted_total",
                 "manta_dbo_steps_total", "manta_eplb_rearrangements_total"):
        assert all("engine=" in labels for labels in got[name]) and got[name], name


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_prometheus_scrapes_it(deployment, tmp_path):
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "manta", "static_configs": [{"targets": [deployment.url.split("//")[1]]}]}],
    }))
    server = subprocess.Popen([TOOLS / "prometheus", f"--config.file={tmp_path}/prometheus.yml",
                               f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        def ask(query):
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=5).json()
            except httpx.HTTPError:
                return []
            return answer.get("data", {}).get("result", [])

        end = time.monotonic() + 30
        while not ask("vllm:generation_tokens_total"):
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < end, "Prometheus never had a sample"
            time.sleep(0.1)
        assert [r["value"][1] for r in ask("sum(vllm:generation_tokens_total)")] == ["48"]
        assert [r["value"][1] for r in ask('up{job="manta"}')] == ["1"]
        assert len(ask("histogram_quantile(0.5, vllm:time_to_first_token_seconds_bucket)")) == 2
    finally:
        server.kill()
        server.wait()
