"""What a pd.yaml's `args` may say, checked before anything starts.

The values of engine_kwargs are not judged here: the `manta` binary knows every setting, and says what is wrong with one.
"""

import difflib
import hashlib
import json
import os
import shutil
import sys
from typing import Any

ROLE_KEYS = {
    "model_loading_config", "deployment_config", "engine_kwargs", "experimental_configs", "runtime_env",
    "accelerator_type", "llm_engine", "log_engine_metrics",
}
MODEL_KEYS = {"model_id", "model_source", "tokenizer_source"}
EXPERIMENTAL_KEYS = {"dp_size_per_node", "NIXL_SIDE_CHANNEL_PORT_BASE", "stream_batching_interval_ms"}
# What this module decides itself, and who decides it.
OWNED_KEYS = {
    "model": "stands in model_loading_config.model_source", "served_model_name": "stands in model_loading_config.model_id",
    "tokenizer": "stands in model_loading_config.tokenizer_source", "host": "Ray's http_options.host",
    "port": "Ray's http_options.port, and args.direct_port", "uds": "Ray's http_options", "ready_file": "manta_ray reads it",
    "coordinator": "manta_ray starts one", "headless": "a Serve replica is one rank with an API",
    "data_parallel_rank": "given out to the Serve replicas", "data_parallel_start_rank": "a Serve replica is one rank",
    "data_parallel_size_local": "a Serve replica is one rank", "data_parallel_hybrid_lb": "a Serve replica is one rank",
    "data_parallel_address": "manta_ray starts the coordinator", "data_parallel_rpc_port": "manta_ray starts the coordinator",
}
# Of the front door: the ranks' own ports are on loopback, behind it.
FRONT_DOOR_KEYS = {"api_key", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"}
# Of engines alone. The router would take them, but a change of one of them should leave it, and its streams, where they are.
ENGINE_KEYS = {
    "max_num_seqs", "max_num_batched_tokens", "cpu_threads", "gpu_memory_utilization", "kv_cache_memory_bytes", "block_size",
    "enable_prefix_caching", "async_scheduling", "enforce_eager", "compilation_config", "speculative_config", "kv_transfer_config",
    "data_parallel_size", "tensor_parallel_size", "enable_expert_parallel", "all2all_backend", "enable_eplb", "eplb_config",
    "enable_dbo", "dbo_decode_token_threshold", "dbo_prefill_token_threshold",
}
# Not on a command line, where everybody on the machine could read them.
SECRET_KEYS = {"api_key": "MANTA_API_KEY", "hf_token": "HF_TOKEN"}


class ConfigError(ValueError):
    """The file says something that cannot be done; the text names the key, the value and what to write instead."""


def check_keys(where: str, given: dict, known: set) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


def mapping(where: str, value: Any) -> dict:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a mapping is expected, not {value!r}")
    return value


def count(where: str, value: Any, least: int = 1) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise ConfigError(f"{where}: {value!r}; a whole number of at least {least} is expected")
    return number


def options_of(settings: dict) -> list:
    """Settings as options of `manta`."""
    out = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            out.append(f"--{name}={json.dumps(value) if isinstance(value, (dict, list)) else value}")
    return out


class RoleConfig:
    """prefill_config or decode_config (or the one config of a deployment that does both)."""

    def __init__(self, where: str, role: str, raw: dict):
        raw = mapping(where, raw)
        check_keys(where, raw, ROLE_KEYS)
        self.where, self.role, self.raw = where, role, raw
        self._read_model(mapping(f"{where}.model_loading_config", raw.get("model_loading_config")))
        self.engine_kwargs = dict(mapping(f"{where}.engine_kwargs", raw.get("engine_kwargs")))
        for key, owner in OWNED_KEYS.items():
            if key in self.engine_kwargs:
                raise ConfigError(f"{where}.engine_kwargs.{key}: {owner}; leave it out")
        self.deployment = dict(mapping(f"{where}.deployment_config", raw.get("deployment_config")))
        self.runtime_env = dict(mapping(f"{where}.runtime_env", raw.get("runtime_env")))
        self.accelerator_type = raw.get("accelerator_type")
        self.log_engine_metrics = bool(raw.get("log_engine_metrics", True))
        if raw.get("llm_engine", "vLLM") not in ("vLLM", "manta"):
            raise ConfigError(f"{where}.llm_engine: {raw['llm_engine']!r}; this module starts manta (vLLM is read as manta)")
        self._read_sizes(mapping(f"{where}.experimental_configs", raw.get("experimental_configs")))
        # Names this very configuration: a change makes a new group, which never mixes with the old one.
        self.group = f"{role}-{hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()[:8]}"

    def _read_model(self, model: dict) -> None:
        where = f"{self.where}.model_loading_config"
        check_keys(where, model, MODEL_KEYS)
        if not isinstance(model.get("model_id"), str) or not model["model_id"]:
            raise ConfigError(f"{where}.model_id: give the name clients will ask for")
        if not isinstance(model.get("model_source", ""), str):
            raise ConfigError(f"{where}.model_source: a folder or a Hub id is expected; cloud mirrors are not supported, mount the "
                              "bucket or set HF_HOME")
        self.model_id = model["model_id"]
        self.model_source = model.get("model_source") or model["model_id"]
        self.tokenizer_source = model.get("tokenizer_source")

    def _read_sizes(self, experimental: dict) -> None:
        where = f"{self.where}.experimental_configs"
        check_keys(where, experimental, EXPERIMENTAL_KEYS)
        self.dp_size = count(f"{self.where}.engine_kwargs.data_parallel_size", self.engine_kwargs.get("data_parallel_size", 1))
        self.ranks_per_node = count(f"{where}.dp_size_per_node", experimental.get("dp_size_per_node", self.dp_size))
        if self.dp_size % self.ranks_per_node:
            raise ConfigError(f"{where}.dp_size_per_node: {self.ranks_per_node} does not divide engine_kwargs.data_parallel_size "
                              f"{self.dp_size}")
        if "stream_batching_interval_ms" in experimental:
            print(f"{where}.stream_batching_interval_ms: tokens leave with the step that made them; see engine_kwargs.stream_interval")
        port = experimental.get("NIXL_SIDE_CHANNEL_PORT_BASE")
        self.side_channel_port = None if port is None else count(f"{where}.NIXL_SIDE_CHANNEL_PORT_BASE", port)

    @property
    def environment(self) -> dict:
        """Of the processes of this role, on top of what the cluster's processes have."""
        given = mapping(f"{self.where}.runtime_env.env_vars", self.runtime_env.get("env_vars"))
        out = {k: str(v) for k, v in given.items()}
        return out | {name: str(self.engine_kwargs[key]) for key, name in SECRET_KEYS.items() if key in self.engine_kwargs}

    def rank_options(self) -> list:
        """What every `manta serve` of this role is told."""
        kept = {k: v for k, v in self.engine_kwargs.items() if k not in FRONT_DOOR_KEYS | SECRET_KEYS.keys()}
        return [*options_of(kept), *self._tokenizer()]

    def router_options(self) -> list:
        """What the router is told when this role answers the clients: it renders prompts and guards the door as it would."""
        kept = {k: v for k, v in self.engine_kwargs.items() if k not in ENGINE_KEYS | SECRET_KEYS.keys()}
        return [*options_of(kept), *self._tokenizer()]

    def _tokenizer(self) -> list:
        return [f"--tokenizer={self.tokenizer_source}"] if self.tokenizer_source else []

    def side_channel(self, host: str) -> dict:
        """Where a rank's KV connector listens. Any free port unless one is named: while a changed configuration rolls, ranks of
        the old and of the new group share a node."""
        given = self.environment
        if not self.engine_kwargs.get("kv_transfer_config"):
            return {}
        out = {"VLLM_NIXL_SIDE_CHANNEL_HOST": host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_channel_port or 0)}
        own = {"nixl_side_channel_host": "VLLM_NIXL_SIDE_CHANNEL_HOST", "nixl_side_channel_port": "VLLM_NIXL_SIDE_CHANNEL_PORT"}
        return {k: v for k, v in out.items() if k not in given and not any(
            name == k and key in self.engine_kwargs for key, name in own.items())}


def manta_binary() -> str:
    """The binary this module starts: MANTA_BINARY, else the one installed beside this Python, else the one on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "manta")
    found = os.environ.get("MANTA_BINARY") or (beside if os.access(beside, os.X_OK) else shutil.which("manta"))
    if not found:
        raise ConfigError("no `manta` binary: install the wheel into the Python that runs Ray, or set MANTA_BINARY")
    return found
