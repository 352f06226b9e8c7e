"""`serve run pd.yaml` on one machine: the seed's file with counts changed, a real client, and nothing left behind."""

import os

import openai
import pytest
import yaml
from cluster import ROOT, Cluster, get

PROMPT = [{"role": "user", "content": "What is 17 + 25?"}]


def pd_config(prefill=2, decode=2) -> dict:
    """deploy/pd.yaml with only model_source, counts and replica numbers changed."""
    config = yaml.safe_load((ROOT / "deploy/pd.yaml").read_text())
    args = config["applications"][0]["args"]
    for role, size in (("prefill_config", prefill), ("decode_config", decode)):
        args[role]["model_loading_config"]["model_source"] = str(ROOT / "models/tiny-v3")
        kwargs = args[role]["engine_kwargs"]
        kwargs.update(data_parallel_size=size, max_model_len=2048, max_num_seqs=32)
        kwargs["eplb_config"]["num_redundant_experts"] = size
        args[role]["experimental_configs"]["dp_size_per_node"] = size
        args[role]["runtime_env"]["env_vars"]["GLOO_SOCKET_IFNAME"] = "lo"
    args["ingress_deployment_config"]["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}
    args["direct_port"] = 0
    return config


@pytest.fixture(scope="module")
def cluster():
    with Cluster({"prefill": 2, "decode": 2}) as c:
        c.deploy(pd_config())
        yield c


def answer(url: str, stream: bool) -> str:
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
    given = client.chat.completions.create(model="deepseek", messages=PROMPT, temperature=0, max_tokens=24, stream=stream)
    if not stream:
        return given.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in given if chunk.choices)


def direct_url(cluster) -> str:
    status, body = get(cluster.url + "/manta/endpoints")
    assert status == 200, body
    return yaml.safe_load(body)["direct"]


def test_both_ports_answer_alike_streamed_or_not(cluster):
    texts = {answer(url, stream) for url in (cluster.url, direct_url(cluster)) for stream in (True, False)}
    assert len(texts) == 1 and texts != {""}


def test_one_engine_per_rank_pinned_to_its_role(cluster):
    engines = [args for _, args in cluster.manta_processes() if args[0] == "engine"]
    assert len(engines) == 4


def test_a_killed_engine_is_replaced(cluster):
    before = answer(cluster.url, False)
    pid = next(pid for pid, args in cluster.manta_processes() if args[0] == "engine")
    os.kill(pid, 9)
    cluster.wait_for(lambda: get(cluster.url + "/health")[0] == 200, 60, "full size again")
    assert answer(cluster.url, False) == before


def test_shutdown_leaves_no_process(cluster):
    cluster.shutdown_serve()
    cluster.wait_for(lambda: not cluster.manta_processes(), 60, "processes of manta end")
