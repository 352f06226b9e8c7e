"""One Serve replica = one DP rank = one `manta serve` of that rank, pinned to the resources of its actor."""

import asyncio
import os
import uuid

import aiohttp
import ray
from ray import serve

from manta_ray.child import Child
from manta_ray.config import ConfigError, RoleConfig, manta_binary
from manta_ray.metrics import MetricsRelay
from manta_ray.node import this_node
from manta_ray.rendezvous import BEAT_S, Group, successor_standing

# A rank that is up but answers nobody for so long is replaced; shorter gaps belong to a group that forms again.
_SILENT_AFTER_S = 60.0
# A process that ends is started again here, on the spot; one that ends so often in a row before it was ready needs another
# actor, perhaps another node.
_MOST_FAILURES = 3
_WAIT_LOOP_S = 0.5
# A changed configuration has its actors within this if the cluster has room for both; if not, the old ranks make room.
_ROOM_S = 30.0
_DRAIN_S = 600.0


class RankServer:
    async def __init__(self, where: str, role: str, raw: dict, drain_s: float):
        self._config = RoleConfig(where, role, raw)
        self._drain_s = drain_s
        self._replica = uuid.uuid4().hex
        self._child, self._lost, self._silent_since, self._metrics = None, None, None, None
        self._node, self._host = this_node()
        self._app = serve.get_replica_context().app_name
        self._group = Group(self._app, self._config.group, self._config.dp_size, self._config.ranks_per_node)
        self._rank = await self._take_rank()
        self._name = f"{role} rank {self._rank}"
        self._coordinator = await self._group.ask("coordinator")
        self._place = {"host": self._host, "node": self._node, "pid": None, "url": None}
        # The lease runs while the weights load, which may take minutes.
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._beat_forever())]
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), connector=aiohttp.TCPConnector(ssl=False))
        await self._start()
        self._tasks.append(loop.create_task(self._restart_forever()))
        wanted = self._config.log_engine_metrics
        labels = {"role": role, "rank": str(self._rank), "node": self._host}
        self._metrics = MetricsRelay(lambda: self._place["url"] if wanted else None, labels)

    async def _take_rank(self) -> int:
        told = False
        while True:
            rank = await self._group.ask("register", self._replica, self._node)
            if rank is not None:
                return rank
            if not told:
                told = True
                print(f"[{self._config.role}] all {self._config.dp_size} ranks are taken; waiting for a lease to end", flush=True)
            await asyncio.sleep(0.5)

    async def _start(self) -> None:
        self._place.update(pid=None, url=None)
        self._child = Child(self._name, self._command(), self._environment())
        said = await self._child.ready()
        self._place.update(url=said["url"], pid=self._child.pid)
        print(f"[{self._name}] ready at {said['url']}, pid {self._child.pid}", flush=True)

    def _command(self) -> list:
        c = self._config
        # On a CPU the ranks of a node share its cores; each would take all of them.
        share = max(1, len(os.sched_getaffinity(0)) // c.ranks_per_node)
        threads = [f"--cpu-threads={share}"] if not ray.get_gpu_ids() and "cpu_threads" not in c.engine_kwargs else []
        return [manta_binary(), "serve", c.model_source, f"--served-model-name={c.model_id}", *c.rank_options(), *threads,
                # The API of a rank is for its router, which comes by the coordinator, and for this module.
                "--host=127.0.0.1", "--port=0", f"--coordinator={self._coordinator}", f"--data-parallel-rank={self._rank}"]

    def _environment(self) -> dict:
        # Ray has set CUDA_VISIBLE_DEVICES for this actor; the child inherits it.
        return self._config.environment | self._config.side_channel(self._host)

    async def _beat_forever(self) -> None:
        while True:
            state = await self._group.ask("beat", self._replica, self._node, self._rank, self._place)
            if not state["mine"]:
                self._lost = f"rank {self._rank} was given to another replica (no heartbeat reached the rendezvous)"
            elif state["coordinator"] != self._coordinator:
                self._lost = f"the coordinator moved from {self._coordinator} to {state['coordinator']}"
            await asyncio.sleep(BEAT_S)

    async def _restart_forever(self) -> None:
        failures = 0
        while failures < _MOST_FAILURES:
            code = await self._child.ended()
            print(f"[{self._name}] pid {self._child.pid} ended with exit code {code}; started again", flush=True)
            try:
                await self._start()
                failures = 0
            except RuntimeError as e:
                print(f"[{self._name}] {e}", flush=True)
                failures += 1
        self._lost = f"its process ended {failures} times before it was ready"

    async def check_health(self) -> None:
        """Serve replaces this replica when this raises."""
        for task in self._tasks:
            if task.done() and task.exception():
                raise task.exception()
        if self._lost:
            raise RuntimeError(f"{self._name}: {self._lost}; a new replica takes over")
        url, now = self._place["url"], asyncio.get_running_loop().time()
        if url is None:  # being started again
            self._silent_since = None
            return
        try:
            async with self._session.get(url + "/ping") as answer:
                await answer.read()
            self._silent_since = None
        except (aiohttp.ClientError, asyncio.TimeoutError) as e:
            self._silent_since = self._silent_since or now
            if now - self._silent_since > _SILENT_AFTER_S:
                raise RuntimeError(f"{self._name} has answered nothing for {_SILENT_AFTER_S:.0f} s: {e}") from e

    async def __del__(self) -> None:
        """Serve calls it when the replica is taken down."""
        if self._metrics is None:
            return  # it was never ready; what it started dies with it
        end = asyncio.get_running_loop().time() + self._drain_s
        await self._await_successor(end)
        for task in self._tasks[1:]:
            task.cancel()
        self._metrics.stop()
        # The lease runs on: the rank is taken until its streams have ended.
        await self._child.drain(max(1.0, end - asyncio.get_running_loop().time()))
        self._tasks[0].cancel()
        await self._group.ask_if_alive("release", self._replica)
        await self._session.close()

    async def _await_successor(self, end: float) -> None:
        """When a changed configuration takes over: serves on until its ranks do, so that no request finds nobody."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _ROOM_S
        while loop.time() < min(until, end) and await loop.run_in_executor(None, self._is_being_replaced):
            state = await successor_standing(self._app, self._config.group)
            if state is not None and state["seated"] == state["size"]:
                until = end  # there is room for both
                if state["ready"] == state["size"]:
                    return
            await asyncio.sleep(0.5)

    def _is_being_replaced(self) -> bool:
        """And not deleted with its application."""
        app = serve.status().applications.get(self._app)
        return app is not None and app.status != "DELETING"


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
    # How long streams may go on when a changed configuration rolls. No request comes by a handle, so Serve need not wait.
    options.setdefault("graceful_shutdown_timeout_s", _DRAIN_S)
    options.setdefault("graceful_shutdown_wait_loop_s", _WAIT_LOOP_S)
    options.pop("request_router_config", None)  # the router's, see policy_of
    options["num_replicas"] = config.dp_size
    options["ray_actor_options"] = actor_options(config)
    drain_s = max(1.0, float(options["graceful_shutdown_timeout_s"]) - float(options["graceful_shutdown_wait_loop_s"]) - 2)
    # Named after the group: a changed configuration is another deployment, whose ranks start while the old ones drain.
    # Replacing replicas one by one would leave a group in which no two ranks agree.
    name = f"{config.role.capitalize()}:{config.model_id}:{config.group.rsplit('-', 1)[-1]}"
    return serve.deployment(RankServer, name=name, **options).bind(config.where, config.role, config.raw, drain_s)


def actor_options(config: RoleConfig) -> dict:
    out = dict(config.deployment.get("ray_actor_options") or {})
    out.setdefault("num_cpus", 0)
    gpus = int(config.engine_kwargs.get("tensor_parallel_size", 1))
    out.setdefault("num_gpus", float(os.environ.get("MANTA_RAY_NUM_GPUS", gpus)))
    if config.accelerator_type:
        out.setdefault("accelerator_type", config.accelerator_type)
    runtime_env = {**config.runtime_env, **(out.get("runtime_env") or {})}
    environment = {**(out.get("runtime_env") or {}).get("env_vars", {}), **config.environment}
    if environment:
        runtime_env["env_vars"] = environment
    if runtime_env:
        out["runtime_env"] = runtime_env
    return out
