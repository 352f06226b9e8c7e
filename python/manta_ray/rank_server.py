"""One Serve replica = one DP rank = one `manta serve` of that rank, pinned to the resources of its actor."""

import asyncio
import contextlib
import os
import uuid

import aiohttp
import ray
from ray import serve

from manta_ray.child import Child
from manta_ray.config import ConfigError, RoleConfig, manta_binary
from manta_ray.metrics import MetricsRelay
from manta_ray.rendezvous import rendezvous

_START_TIMEOUT_S = 3600.0
_BEAT_S = 1.0
# A rank that is up but answers nobody for so long is replaced; shorter gaps belong to a group that forms again.
_SILENT_AFTER_S = 60.0


class RankServer:
    async def __init__(self, where: str, role: str, raw: dict):
        self._config = RoleConfig(where, role, raw)
        self._role = role
        self._replica = uuid.uuid4().hex
        self._child = None
        self._silent_since = None
        context = ray.get_runtime_context()
        self._node, self._host = context.get_node_id(), ray.util.get_node_ip_address()
        self._rendezvous = rendezvous(serve.get_replica_context().app_name, self._config.group, self._config.dp_size, self._config.ranks_per_node)
        self._rank = await self._take_rank()
        self._coordinator = await self._rendezvous.coordinator.remote()
        # The lease runs while the weights load, which may take minutes.
        self._place = {"host": self._host, "rank": self._rank, "node": self._node, "pid": None, "url": None}
        self._lost = None
        self._beats = asyncio.get_running_loop().create_task(self._beat_forever())
        self._child = Child(f"{role} rank {self._rank}", self._command(), self._environment())
        said = await self._child.ready(_START_TIMEOUT_S)
        self._place.update(said, pid=self._child.pid)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        self._metrics = MetricsRelay(said["url"], {"role": role, "rank": str(self._rank), "node": self._host})
        print(f"[{role} rank {self._rank}] ready: {said}", flush=True)

    async def _take_rank(self) -> int:
        told = False
        while True:
            rank = await self._rendezvous.register.remote(self._replica, self._node)
            if rank is not None:
                return rank
            if not told:
                told = True
                print(f"[{self._role}] all {self._config.dp_size} ranks are taken; waiting for a lease to end", flush=True)
            await asyncio.sleep(0.5)

    def _command(self) -> list:
        c = self._config
        return [
            manta_binary(), "serve", c.model_source, "--served-model-name", c.model_id, *c.flags(),
            "--host", self._host, "--port", "0", *self._group_flags()]

    def _group_flags(self) -> list:
        if self._config.dp_size == 1:
            return []
        return ["--data-parallel-external-lb", "--data-parallel-rank", str(self._rank), "--data-parallel-address",
                self._coordinator["host"], "--data-parallel-rpc-port", str(self._coordinator["port"])]

    def _environment(self) -> dict:
        # Ray has set CUDA_VISIBLE_DEVICES for this actor; the child inherits it.
        out = self._config.environment
        if self._config.engine_kwargs.get("kv_transfer_config"):
            out.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", self._host)
            # The engine adds its rank.
            out.setdefault("VLLM_NIXL_SIDE_CHANNEL_PORT", str(self._config.side_channel_port))
        return out

    async def _beat_forever(self) -> None:
        while True:
            with contextlib.suppress(ray.exceptions.RayActorError):  # being restarted; the next beat finds it
                state = await self._rendezvous.beat.remote(self._replica, self._place)
                ours = f"{self._coordinator['host']}:{self._coordinator['port']}"
                if not state["alive"]:
                    self._lost = f"the lease of rank {self._rank} ended (no heartbeat reached the rendezvous)"
                elif state["coordinator"] != ours:
                    self._lost = f"the coordinator moved from {ours} to {state['coordinator']}"
            await asyncio.sleep(_BEAT_S)

    async def check_health(self) -> None:
        """Serve replaces this replica when this raises: the process ended, or the rank lost its place in the group."""
        if self._lost:
            raise RuntimeError(f"{self._role} rank {self._rank}: {self._lost}; a new replica takes over")
        self._child.check()
        loop = asyncio.get_running_loop()
        try:
            async with self._session.get(self._place["url"] + "/ping") as answer:
                await answer.read()
            self._silent_since = None
        except (aiohttp.ClientError, asyncio.TimeoutError) as e:
            self._silent_since = self._silent_since or loop.time()
            if loop.time() - self._silent_since > _SILENT_AFTER_S:
                raise RuntimeError(f"{self._role} rank {self._rank} has answered nothing for {_SILENT_AFTER_S:.0f} s: {e}") from e

    async def place(self) -> dict:
        return self._place

    async def __del__(self) -> None:
        """Serve calls it when the replica is taken down, after its own requests have ended."""
        if self._child is None:
            return
        self._beats.cancel()
        self._metrics.stop()
        await self._child.drain(serve_patience_s())
        await self._rendezvous.release.remote(self._replica)
        await self._session.close()


def serve_patience_s() -> float:
    return float(os.environ.get("MANTA_RAY_DRAIN_S", "15"))


def rank_deployment(config: RoleConfig) -> serve.Application:
    """The Serve deployment of one role: dp_size replicas."""
    options = dict(config.deployment)
    for key in ("num_replicas", "autoscaling_config"):
        if options.pop(key, None) not in (None, config.dp_size):
            raise ConfigError(f"{config.where}.deployment_config.{key}: a group of data_parallel_size {config.dp_size} has exactly "
                              "that many replicas; scale by data_parallel_size or by another application")
    options.setdefault("max_ongoing_requests", 10**9)
    options.setdefault("health_check_period_s", 2)
    options.setdefault("health_check_timeout_s", 10)
    options.setdefault("graceful_shutdown_timeout_s", 30)
    options.pop("request_router_config", None)  # the router's, see policy_of
    options["num_replicas"] = config.dp_size
    options["ray_actor_options"] = actor_options(config)
    # Named after the group: a changed configuration is another deployment, whose ranks start while the old ones drain.
    # Replacing replicas one by one would leave a group in which no two ranks agree.
    name = f"{config.role.capitalize()}:{config.model_id}:{config.group.rsplit('-', 1)[-1]}"
    return serve.deployment(RankServer, name=name, **options).bind(config.where, config.role, config.raw)


def actor_options(config: RoleConfig) -> dict:
    out = dict(config.deployment.get("ray_actor_options") or {})
    out.setdefault("num_cpus", 0)
    gpus = int(config.engine_kwargs.get("tensor_parallel_size", 1))
    out.setdefault("num_gpus", float(os.environ.get("MANTA_RAY_NUM_GPUS", gpus)))
    if config.accelerator_type:
        out.setdefault("accelerator_type", config.accelerator_type)
    environment = {**(out.get("runtime_env") or {}).get("env_vars", {}), **config.environment}
    runtime_env = {**config.runtime_env, **(out.get("runtime_env") or {})}
    if environment:
        runtime_env["env_vars"] = environment
    if runtime_env:
        out["runtime_env"] = runtime_env
    return out
