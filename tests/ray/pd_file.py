"""deploy/pd.yaml for a machine of two cores: the same file with the model, counts and names of interfaces changed."""

import copy

import yaml
from cluster import ROOT

PD_YAML = yaml.safe_load((ROOT / "deploy/pd.yaml").read_text())
MODEL = str(ROOT / "models/tiny-v3")
# What may differ; a test compares everything else.
CHANGED = {"model_source", "data_parallel_size", "dp_size_per_node", "num_redundant_experts", "max_model_len", "max_num_seqs",
           "min_replicas", "max_replicas", "GLOO_SOCKET_IFNAME"}
# With it outputs mean nothing, as the file says; it goes where tokens are compared.
FOR_BENCHES = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY"


def scaled(prefill=2, decode=2, per_node=None, interface="lo", replicas=(1, 1)) -> dict:
    config = copy.deepcopy(PD_YAML)
    args = config["applications"][0]["args"]
    for role, size in (("prefill_config", prefill), ("decode_config", decode)):
        args[role]["model_loading_config"]["model_source"] = MODEL
        kwargs = args[role]["engine_kwargs"]
        kwargs.update(data_parallel_size=size, max_model_len=4096, max_num_seqs=16)
        kwargs["eplb_config"]["num_redundant_experts"] = size
        args[role]["experimental_configs"]["dp_size_per_node"] = per_node or size
        args[role]["runtime_env"]["env_vars"]["GLOO_SOCKET_IFNAME"] = interface
    args["ingress_deployment_config"]["autoscaling_config"] = dict(zip(("min_replicas", "max_replicas"), replicas))
    return config


def meaningful(config: dict) -> dict:
    config = copy.deepcopy(config)
    for role in ("prefill_config", "decode_config"):
        config["applications"][0]["args"][role]["runtime_env"]["env_vars"].pop(FOR_BENCHES, None)
    return config


def differences(a, b, path=()):
    """Paths at which two trees differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), (*path, key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, (*path, i))]
    return [] if a == b else [path]
