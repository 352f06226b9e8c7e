"""From the `args` of an application in a pd.yaml to a Serve application."""

import difflib

from ray import serve

from manta_ray.config import ConfigError, RoleConfig, check_keys, mapping
from manta_ray.ingress import ingress_deployment
from manta_ray.rank_server import rank_deployment

PD_KEYS = {"prefill_config", "decode_config", "ingress_deployment_config", "direct_port"}
POLICIES = {"round_robin": "round_robin", "least_loaded": "least_loaded", "prefix_affinity": "prefix_affinity",
            # Ray's classes by name: their modules are never imported, the policy is the router's own.
            "PrefixCacheAffinityRouter": "prefix_affinity", "PowerOfTwoChoicesRequestRouter": "least_loaded"}


def policy_of(config: RoleConfig) -> str:
    """deployment_config.request_router_config -> the router's policy for choosing a rank of this role."""
    where = f"{config.where}.deployment_config.request_router_config"
    raw = mapping(where, config.deployment.get("request_router_config"))
    name = raw.get("request_router_class")
    if name is None:
        return "least_loaded"
    short = str(name).replace(":", ".").rsplit(".", 1)[-1]
    if short not in POLICIES:
        near = difflib.get_close_matches(short, sorted(POLICIES), 1) or sorted(POLICIES)
        raise ConfigError(f"{where}.request_router_class: {name!r} is not a policy of manta's router; known: {', '.join(near)}")
    return POLICIES[short]


def build_pd_dp_openai_app(args: dict) -> serve.Application:
    """Prefill and decode apart, one front door."""
    args = mapping("args", args)
    check_keys("args", args, PD_KEYS)
    for key in ("prefill_config", "decode_config"):
        if key not in args:
            raise ConfigError(f"args.{key} is missing")
    prefill = RoleConfig("prefill_config", "prefill", args["prefill_config"])
    decode = RoleConfig("decode_config", "decode", args["decode_config"])
    if prefill.model_id != decode.model_id:
        raise ConfigError(f"model_loading_config.model_id: prefill says {prefill.model_id!r}, decode {decode.model_id!r}; "
                          "both serve one model")
    return ingress_deployment(args, {
        config.role: (rank_deployment(config), config, policy_of(config)) for config in (prefill, decode)})


def build_dp_openai_app(args: dict) -> serve.Application:
    """One deployment that does both, data parallel: args is {llm_config: …, ingress_deployment_config: …}."""
    return _one_role(args, "llm_config", "mixed")


def build_prefill_app(args: dict) -> serve.Application:
    """Prefill alone, for those who scale the two halves as applications of their own."""
    return _one_role(args, "prefill_config", "prefill")


def build_decode_app(args: dict) -> serve.Application:
    return _one_role(args, "decode_config", "decode")


def _one_role(args: dict, key: str, role: str) -> serve.Application:
    args = mapping("args", args)
    check_keys("args", args, {key, "ingress_deployment_config", "direct_port"})
    if key not in args:
        raise ConfigError(f"args.{key} is missing")
    config = RoleConfig(key, role, args[key])
    return ingress_deployment(args, {role: (rank_deployment(config), config, policy_of(config))})
