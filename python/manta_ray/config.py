"""What a pd.yaml's `args` may say, checked before anything starts.

The values of engine_kwargs are not judged here: the `manta` binary knows every setting.
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
# First side-channel port of a role; a rank adds its number. The bases are those of Ray's own builder.
SIDE_CHANNEL_PORT = {"prefill": 20000, "decode": 22000, "mixed": 24000}


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


class RoleConfig:
    """prefill_config or decode_config (or the one config of a deployment that does both)."""

    def __init__(self, where: str, role: str, raw: dict):
        raw = mapping(where, raw)
        check_keys(where, raw, ROLE_KEYS)
        self.where, self.role, self.raw = where, role, raw
        model = mapping(f"{where}.model_loading_config", raw.get("model_loading_config"))
        check_keys(f"{where}.model_loading_config", model, MODEL_KEYS)
        if not isinstance(model.get("model_id"), str) or not model["model_id"]:
            raise ConfigError(f"{where}.model_loading_config.model_id: give the name clients will ask for")
        if not isinstance(model.get("model_source", ""), str):
            raise ConfigError(f"{where}.model_loading_config.model_source: a folder or a Hub id is expected; "
                              "cloud mirrors are not supported, mount the bucket or set HF_HOME")
        self.model_id = model["model_id"]
        self.model_source = model.get("model_source") or model["model_id"]
        self.tokenizer_source = model.get("tokenizer_source")
        self.engine_kwargs = dict(mapping(f"{where}.engine_kwargs", raw.get("engine_kwargs")))
        self.deployment = dict(mapping(f"{where}.deployment_config", raw.get("deployment_config")))
        self.runtime_env = dict(mapping(f"{where}.runtime_env", raw.get("runtime_env")))
        experimental = mapping(f"{where}.experimental_configs", raw.get("experimental_configs"))
        check_keys(f"{where}.experimental_configs", experimental, EXPERIMENTAL_KEYS)
        self.accelerator_type = raw.get("accelerator_type")
        if raw.get("llm_engine", "vLLM") not in ("vLLM", "manta"):
            raise ConfigError(f"{where}.llm_engine: {raw['llm_engine']!r}; this module starts manta (vLLM is read as manta)")
        self.dp_size = self._count("engine_kwargs.data_parallel_size", self.engine_kwargs.get("data_parallel_size", 1))
        self.ranks_per_node = self._count("experimental_configs.dp_size_per_node",
                                          experimental.get("dp_size_per_node", self.dp_size))
        if self.dp_size % self.ranks_per_node:
            raise ConfigError(f"{where}.experimental_configs.dp_size_per_node: {self.ranks_per_node} does not divide "
                              f"engine_kwargs.data_parallel_size {self.dp_size}")
        # Names this very configuration: a change makes a new group, which never mixes with the old one.
        self.group = f"{role}-{hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()[:8]}"
        self.side_channel_port = int(experimental.get("NIXL_SIDE_CHANNEL_PORT_BASE", SIDE_CHANNEL_PORT[role]))

    def _count(self, key: str, value: Any) -> int:
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = 0
        if number < 1:
            raise ConfigError(f"{self.where}.{key}: {value!r}; a whole number of at least 1 is expected")
        return number

    @property
    def environment(self) -> dict:
        return {k: str(v) for k, v in mapping(f"{self.where}.runtime_env.env_vars", self.runtime_env.get("env_vars")).items()}

    def flags(self) -> list:
        """engine_kwargs as options of `manta serve`."""
        out = []
        for key, value in self.engine_kwargs.items():
            name = "--" + key.replace("_", "-")
            if value is True:
                out.append(name)
            elif value is False:
                out.append("--no-" + key.replace("_", "-"))
            elif isinstance(value, (dict, list)):
                out += [name, json.dumps(value)]
            elif value is not None:
                out += [name, str(value)]
        if self.tokenizer_source:
            out += ["--tokenizer", self.tokenizer_source]
        return out


def manta_binary() -> str:
    """The binary this module starts: MANTA_BINARY, else the one installed beside this Python, else the one on PATH."""
    beside = os.path.join(os.path.dirname(sys.executable), "manta")
    found = os.environ.get("MANTA_BINARY") or (beside if os.access(beside, os.X_OK) else shutil.which("manta"))
    if not found:
        raise ConfigError("no `manta` binary: install the wheel into the Python that runs Ray, or set MANTA_BINARY")
    return found


def merged(base: dict, over: Any) -> dict:
    """`over` wins; mappings are merged key by key."""
    out = dict(base)
    for key, value in (over or {}).items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out
