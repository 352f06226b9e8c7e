"""What an operator looks at: /health, `manta status` and the page."""

import json
import subprocess

import httpx

from deployment import MANTA, Deployment, metric, wait_until

WHO = {"role", "rank", "pid", "host", "state", "epoch"}
COUNTERS = {"manta_ep_dispatch_rows_total", "manta_ep_dispatch_bytes_total", "manta_dummy_steps_total",
            "manta_membership_epoch", "manta_routing_simulated", "manta_requests_resubmitted_total",
            "manta_dbo_steps_total", "manta_eplb_rearrangements_total", "manta_ep_group_ranks"}


def status(url, *flags):
    return subprocess.run([MANTA, "status", "--url", url, *flags], capture_output=True, text=True, timeout=30)


def test_ranks_of_a_deployment():
    with Deployment("-dp", "2", "--enable-expert-parallel") as d:
        answer = httpx.post(d.url + "/v1/completions", json={"prompt": [5, 6, 7], "max_tokens": 4}, timeout=60)
        assert answer.status_code == 200
        health = httpx.get(d.url + "/health")
        assert health.status_code == 200 and [r["rank"] for r in health.json()["ranks"]] == [0, 1]
        ended = status(d.url, "--json")
        assert ended.returncode == 0, ended.stderr
        ranks = json.loads(ended.stdout)["ranks"]
        assert sorted(r["pid"] for r in ranks) == d.children("engine")
        for rank in ranks:
            assert WHO <= set(rank) and COUNTERS <= set(rank["counters"])
            assert rank["state"] == "ready" and rank["role"] == "mixed" and rank["num_blocks"] > 0
            assert {"step", "layer", "stage", "busy"} == set(rank["where"])
        assert sum(r["counters"]["manta_ep_dispatch_rows_total"] for r in ranks) > 0
        table = status(d.url)
        assert table.returncode == 0 and len(table.stdout.splitlines()) == 4, table.stdout


def test_load_balancing_and_microbatches_are_counted():
    eplb = json.dumps({"step_interval": 8, "window_size": 8, "num_redundant_experts": 4})
    with Deployment("-dp", 2, "--enable-expert-parallel", "--enable-eplb", "--eplb-config", eplb, "--enable-dbo",
                    "--dbo-decode-token-threshold", 2, "--dbo-prefill-token-threshold", 2) as d:
        body = {"prompt": [[i, i + 7, i + 9] for i in range(16, 32)], "max_tokens": 64, "ignore_eos": True}
        assert httpx.post(d.url + "/v1/completions", json=body, timeout=60).status_code == 200
        one = {"prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True}
        assert httpx.post(d.url + "/v1/completions", json=one, timeout=60).status_code == 200
        wait_until(lambda: "manta_eplb_balancedness{" in httpx.get(d.url + "/metrics").text, "a window of expert load")
        assert metric(d.url, "manta_eplb_balancedness") > 0
        metrics = httpx.get(d.url + "/metrics").text.splitlines()
        layers = {line.split("{")[1].split("}")[0]: float(line.rsplit(" ", 1)[1]) for line in metrics
                  if line.startswith("manta_eplb_balancedness{")}
        assert all(0 < value <= 1 for value in layers.values())
        for rank in (0, 1):
            assert metric(d.url, "manta_eplb_rearrangements_total", engine=rank) > 0
        for result in ("split", "below_threshold"):
            assert metric(d.url, "manta_dbo_steps_total", result=result) > 0
        told = json.loads(status(d.url, "--json").stdout)
        experts = told["experts"]
        assert len(experts["balancedness"]) * 2 == len(layers), "both ranks tell of every layer"
        assert len(experts["tokens"]) == experts["num_layers"] * experts["num_experts"] and sum(experts["tokens"]) > 0
        assert all(r["counters"]["manta_eplb_rearrangements_total"] > 0 for r in told["ranks"])
        table = status(d.url).stdout
        assert "of the steps in two microbatches" in table and "experts: balancedness" in table, table


def test_nobody_there_is_said():
    ended = status("http://127.0.0.1:1")
    assert ended.returncode == 1 and "127.0.0.1:1" in ended.stderr


def test_the_page_needs_nothing_from_elsewhere():
    with Deployment("--executor", "fake") as d:
        page = httpx.get(d.url + "/dashboard")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert 'fetch("status")' in page.text
        assert "http://" not in page.text and "https://" not in page.text
