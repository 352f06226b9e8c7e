"""The `manta router` of a node: one for all ingress replicas of an application there, kept by an actor of its own.

It outlives single ingress replicas (autoscaling takes them down at any time, streams that came by the direct port go on) and
ends when none has renewed its lease for a while.
"""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta_ray.child import Child
from manta_ray.config import manta_binary
from manta_ray.metrics import MetricsRelay
from manta_ray.node import this_node
from manta_ray.rendezvous import BEAT_S, NAMESPACE, Group, actor_name

_LEASE_S = 15.0
_DRAIN_S = 60.0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000)
class RouterHost:
    async def __init__(self, app: str, name: str):
        self._app, self._name = app, name
        self._node, self._host = this_node()
        self._plan, self._child, self._url = None, None, None
        self._groups: dict[str, tuple] = {}  # every group this application has had: name -> (role, its handle)
        self._lease_ends: dict[str, float] = {}
        self._last_lease_end = time.monotonic() + _LEASE_S
        self._folder = tempfile.TemporaryDirectory(prefix="manta-ray-router-")
        self._endpoints = os.path.join(self._folder.name, "endpoints.json")
        self._written = None
        self._drains: set = set()
        self._lock = asyncio.Lock()  # one hand on the child
        self._watch = asyncio.get_running_loop().create_task(self._watch_forever())
        # Its own counters; what else is on its page are the ranks', who report themselves.
        self._metrics = MetricsRelay(lambda: self._url, {"role": "router", "app": app, "node": self._host}, "manta_router_")

    async def beat(self, replica: str, plan: dict) -> dict:
        """Renews a replica's lease; the newest plan wins. Back comes where the router listens, once it does."""
        self._last_lease_end = self._lease_ends[replica] = time.monotonic() + _LEASE_S
        if self._plan is None or plan["built"] > self._plan["built"]:
            async with self._lock:
                await self._follow(plan)
        return {"url": self._url, "pid": self._child.pid if self._child else None, "host": self._host}

    async def give_back(self, replica: str) -> None:
        self._lease_ends.pop(replica, None)
        self._last_lease_end = min(self._last_lease_end, max(self._lease_ends.values(), default=time.monotonic() + BEAT_S * 3))

    async def routers(self) -> list:
        """Direct URLs of this application on all nodes."""
        _, group = self._groups[next(reversed(self._plan["roles"].values()))["group"]]
        return sorted({*await group.ask("routers"), *([self._url] if self._url else [])})

    async def _follow(self, plan: dict) -> None:
        before = self._plan
        if before is not None and plan["built"] <= before["built"]:
            return
        self._plan = plan
        for role, of in plan["roles"].items():
            if of["group"] not in self._groups:
                self._groups[of["group"]] = (role, Group(self._app, of["group"], of["dp_size"], of["ranks_per_node"]))
        await self._write_endpoints()
        if before is not None and self._command(before) == self._command(plan) and before["environment"] == plan["environment"]:
            return  # new groups are found in the endpoints; open streams stay where they are
        await self._restart()

    def _command(self, plan: dict) -> list:
        # A cluster that keeps to loopback keeps its routers there too.
        host = self._host if self._host.startswith("127.") else "0.0.0.0"  # noqa: S104: the front door
        return [manta_binary(), "router", *plan["options"], f"--host={host}", f"--port={plan['direct_port']}",
                f"--endpoints={self._endpoints}"]

    async def _restart(self) -> None:
        old, self._child, self._url = self._child, None, None
        if old is not None:  # it listens no more, and finishes its streams beside the new one
            self._drains.add(asyncio.get_running_loop().create_task(old.drain(_DRAIN_S)))
        port = self._plan["direct_port"]
        while not _is_free(port):
            print(f"[router] direct_port {port} is taken on {self._host}: waiting. args.direct_port gives it another number "
                  "(each application needs its own), 0 any free one", flush=True)
            await asyncio.sleep(2.0)
        self._child = Child("router", self._command(self._plan), self._plan["environment"])

    async def _look_after_child(self) -> None:
        async with self._lock:
            if self._plan is None:
                return
            await self._write_endpoints()
            if self._child is None or not self._child.alive:
                await self._restart()
        if self._url is None:
            child = self._child
            said = await child.ready()  # once there are ranks
            if child is self._child:
                port = said["url"].rsplit(":", 1)[1]
                scheme = said["url"].split(":", 1)[0]
                self._url = f"{scheme}://{self._host}:{port}"
                print(f"[router] direct port: {self._url} (tokens need not pass through Ray's proxy), pid {child.pid}", flush=True)

    async def _write_endpoints(self) -> None:
        """Where the groups' coordinators are. A group that has ended answers no more and is left out."""
        wanted = {of["group"] for of in self._plan["roles"].values()}
        out: dict[str, list] = {}
        for name, (role, group) in list(self._groups.items()):
            ask = group.ask if name in wanted else group.ask_if_alive
            address = await ask("follow", self._node, self._url, name in wanted)
            if address is None:
                del self._groups[name]
            else:
                # Prefill alone is a deployment like any other: it answers its clients itself.
                out.setdefault(role if "decode" in self._plan["roles"] else "mixed", []).append(address)
        text = json.dumps(out, sort_keys=True)
        if text != self._written:
            half = self._endpoints + ".tmp"
            with open(half, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(half, self._endpoints)
            self._written = text

    async def _watch_forever(self) -> None:
        looking = None
        while True:
            await asyncio.sleep(BEAT_S)
            self._lease_ends = {replica: end for replica, end in self._lease_ends.items() if end > time.monotonic()}
            if time.monotonic() > self._last_lease_end:
                if self._child is not None:
                    await self._child.drain(_DRAIN_S)
                self._folder.cleanup()
                ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))
                return
            # Beside this loop: a router may wait for its ranks for minutes, leases end all the same.
            if looking is not None and looking.done() and looking.exception():
                print(f"[router] {looking.exception()}", flush=True)
            if looking is None or looking.done():
                looking = asyncio.get_running_loop().create_task(self._look_after_child())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104: asks only
        except OSError:
            return False
    return True


class RouterLease:
    """An ingress replica's hold on its node's router."""

    def __init__(self, app: str, plan: dict):
        self._app, self._plan, self._replica = app, plan, uuid.uuid4().hex
        self._node = ray.get_runtime_context().get_node_id()
        self._at, self._failure = {"url": None, "pid": None}, None
        self._beats = asyncio.get_running_loop().create_task(self._beat_forever())

    def _host(self):
        name = actor_name(self._app, f"router:{self._node}")
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        return RouterHost.options(name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
                                  scheduling_strategy=here).remote(self._app, name)

    @property
    def url(self) -> str | None:
        return self._at["url"]

    @property
    def pid(self) -> int | None:
        return self._at["pid"]

    async def ready(self) -> None:
        while self.url is None:
            await asyncio.sleep(0.1)

    async def _beat_forever(self) -> None:
        while True:
            try:
                self._at = await self._host().beat.remote(self._replica, self._plan)
                self._failure = None
            except Exception as e:  # noqa: BLE001: whatever it is, check_health tells it
                self._failure = e
            await asyncio.sleep(BEAT_S if self.url else BEAT_S / 4)

    def check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"no router on this node: {self._failure}") from self._failure

    async def routers(self) -> list:
        return await self._host().routers.remote()

    async def give_back(self) -> None:
        self._beats.cancel()
        with contextlib.suppress(ray.exceptions.RayError):
            await self._host().give_back.remote(self._replica)
