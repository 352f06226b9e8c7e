#!/usr/bin/env python3
"""What Ray's road costs. Needs the venvs of `./dev deps ray` with the wheel in them (`./dev test ray` leaves them so).

    MANTA_RAY_VENV=.deps/ray-2.51.0 .deps/venv/bin/python bench/ray_bench.py [--rounds 5]

Prints one JSON line per question, each a ratio to a baseline of the same run, rounds alternating:

    ttft        first byte of a stream through Ray's port over that of Ray's minimal streaming deployment (bench/ray_minimal.py), medians;
                scripted tokens without a pace, one request at a time; at most 1.3 is wanted
    throughput  output tokens per second through the direct port over `manta up` with the same file, `manta bench serve`; medians;
                at least 0.95 is wanted
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path += [str(REPO / "tests/ray"), str(REPO / "tests/product")]
os.environ.update(PYTHONPATH=str(REPO / "bench"), RAY_worker_niceness="0")

import httpx  # noqa: E402
import yaml  # noqa: E402
from cluster import Cluster, free_port  # noqa: E402
from pd_file import MODEL, meaningful, scaled  # noqa: E402

MANTA = REPO / "build/cpu/manta"


def first_bytes(url, model, count):
    """Seconds to the first event of each of `count` streams, one after the other."""
    def one(client):
        begun = time.perf_counter()
        with client.stream("POST", url, json={"model": model, "prompt": [5, 6, 7], "max_tokens": 16, "ignore_eos": True,
                                              "stream": True}) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            first = time.perf_counter() - begun
            for _ in lines:
                pass
        return first
    with httpx.Client(timeout=60) as client:
        return [one(client) for _ in range(count)]


def ttft(rounds):
    scripted = {
        "name": "scripted", "route_prefix": "/", "import_path": "pd_dpep_builder:build_dp_openai_app", "args": {
            "llm_config": {"model_loading_config": {"model_id": "scripted", "model_source": MODEL},
                           "engine_kwargs": {"executor": "fake", "fake_tokens_per_second": 0}},
            "ingress_deployment_config": {"num_replicas": 1}}}
    minimal = {"name": "minimal", "route_prefix": "/minimal", "import_path": "ray_minimal:build"}
    with Cluster({}) as cluster:
        cluster.run({"applications": [scripted, minimal]})
        ours, theirs, direct = [], [], []
        for _ in range(rounds + 1):  # the first one warms up
            theirs.append(statistics.median(first_bytes(cluster.url + "/minimal", "minimal", 100)))
            ours.append(statistics.median(first_bytes(cluster.url + "/v1/completions", "scripted", 100)))
            direct.append(statistics.median(first_bytes(cluster.direct_url + "/v1/completions", "scripted", 100)))
    ours, theirs, direct = (statistics.median(x[1:]) for x in (ours, theirs, direct))
    print(json.dumps({"bench": "ttft", "ray_minimal_ms": round(theirs * 1e3, 2), "rays_port_ms": round(ours * 1e3, 2),
                      "direct_port_ms": round(direct * 1e3, 2), "ratio": round(ours / theirs, 3), "wanted_at_most": 1.3}), flush=True)


def tokens_per_second(url):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([MANTA, "bench", "serve", "--url", url, "--model", "deepseek", "--num-prompts", "48", "--concurrency", "8",
                        "--input-len", "64", "--output-len", "64", "--json", out.name], check=True, capture_output=True)
        return json.load(open(out.name))["output_tokens_per_s"]


def throughput(rounds):
    config = meaningful(scaled())
    with tempfile.TemporaryDirectory() as folder, Cluster({"prefill": 2, "decode": 2}) as cluster:
        path = pathlib.Path(folder) / "pd.yaml"
        path.write_text(yaml.safe_dump(config))
        cluster.run(config)
        port = free_port()
        up = subprocess.Popen([MANTA, "up", path, "--host", "127.0.0.1", "--port", str(port), "--ready-file", f"{folder}/ready"],
                              cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        threading.Thread(target=lambda: said.extend(up.stdout), daemon=True).start()
        while not os.path.exists(f"{folder}/ready"):
            assert up.poll() is None, "".join(said)
            time.sleep(0.1)
        try:
            ray, alone = [], []
            for _ in range(rounds + 1):
                alone.append(tokens_per_second(f"http://127.0.0.1:{port}"))
                ray.append(tokens_per_second(cluster.direct_url))
        finally:
            up.terminate()
            up.wait(60)
    ray, alone = (statistics.median(x[1:]) for x in (ray, alone))
    print(json.dumps({"bench": "throughput", "manta_up": round(alone, 1), "direct_port": round(ray, 1),
                      "ratio": round(ray / alone, 3), "wanted_at_least": 0.95}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("questions", nargs="*", default=["ttft", "throughput"], choices=["ttft", "throughput"])
    options = parser.parse_args()
    for question in options.questions:
        {"ttft": ttft, "throughput": throughput}[question](options.rounds)


if __name__ == "__main__":
    main()
