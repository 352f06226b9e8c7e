"""The `manta router` of a node: one for all ingress replicas of an application there, kept by an actor of its own.

It outlives single ingress replicas (autoscaling takes them down at any time, streams that came by the direct port go on) and
ends when none has renewed its lease for a while.
"""

import asyncio
import contextlib
import json
import os
import tempfile
import time
import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta_ray.child import Child
from manta_ray.config import manta_binary
from manta_ray.rendezvous import NAMESPACE, actor_name, rendezvous

_BEAT_S = 1.0
_LEASE_S = 15.0
_READY_S = 60.0


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000)
class RouterHost:
    async def __init__(self, app: str, name: str):
        self._app, self._name = app, name
        self._host = ray.util.get_node_ip_address()
        self._plan, self._child, self._url = None, None, None
        self._groups: dict[str, tuple] = {}  # every group this application has had: name -> (role, its rendezvous)
        self._leases: dict[str, float] = {}
        self._started = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="manta-ray-router-")
        self._endpoints = os.path.join(self._folder.name, "endpoints.json")
        self._written = None
        self._lock = asyncio.Lock()
        self._watch = asyncio.get_running_loop().create_task(self._watch_forever())

    async def beat(self, replica: str, plan: dict) -> dict:
        """Renews a replica's lease; the newest plan wins. Back comes where the router listens."""
        self._leases[replica] = time.monotonic() + _LEASE_S
        async with self._lock:
            if self._plan is None or plan["built"] > self._plan["built"]:
                await self._follow(plan)
            elif self._child is None or self._child.process.poll() is not None:
                await self._start()
        return {"url": self._url, "pid": self._child.pid, "host": self._host}

    async def give_back(self, replica: str) -> None:
        self._leases.pop(replica, None)

    async def _follow(self, plan: dict) -> None:
        before, self._plan = self._plan, plan
        for role, of in plan["roles"].items():
            if of["group"] not in self._groups:
                self._groups[of["group"]] = (role, rendezvous(self._app, of["group"], of["dp_size"], of["ranks_per_node"]))
        await self._write_endpoints()
        if before is not None and self._command(before) == self._command(plan) and self._child.process.poll() is None:
            return  # new groups are found in the endpoints; open streams stay where they are
        await self._start()

    def _command(self, plan: dict) -> list:
        out = [manta_binary(), "router", "--served-model-name", plan["model_id"], "--host", "0.0.0.0",  # noqa: S104: the front door
               "--port", str(plan["direct_port"]), "--endpoints", self._endpoints]
        for role, of in plan["roles"].items():
            out += [f"--{role}-policy", of["policy"]]
        first = next(iter(plan["roles"].values()))
        out += ["--tokenizer", first["tokenizer_source"] or first["model_source"]]
        return out

    async def _start(self) -> None:
        if self._child is not None:
            await self._child.drain(5.0)
        self._child = Child("router", self._command(self._plan))
        said = await self._child.ready(_READY_S)
        port = said["url"].rsplit(":", 1)[1]
        self._url = f"http://127.0.0.1:{port}"
        print(f"[router] direct port: http://{self._host}:{port} (tokens need not pass through Ray's proxy)", flush=True)

    async def _write_endpoints(self) -> None:
        """Where the groups' coordinators are. A group that has ended answers no more and is left out."""
        out: dict[str, list] = {}
        for name, (role, actor) in list(self._groups.items()):
            try:
                at = await actor.coordinator.remote()
            except ray.exceptions.RayActorError:
                if name not in {of["group"] for of in self._plan["roles"].values()}:
                    del self._groups[name]
                continue
            out.setdefault(role, []).append(f"tcp:{at['host']}:{at['port']}")
        text = json.dumps(out, sort_keys=True)
        if text != self._written:
            half = self._endpoints + ".tmp"
            with open(half, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(half, self._endpoints)
            self._written = text

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            now = time.monotonic()
            self._leases = {replica: end for replica, end in self._leases.items() if end > now}
            if not self._leases and now - self._started > _LEASE_S:
                if self._child is not None:
                    await self._child.drain(5.0)
                ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))
            async with self._lock:
                if self._plan is not None:
                    await self._write_endpoints()
                    if self._child.process.poll() is not None:
                        await self._start()


class RouterLease:
    """An ingress replica's hold on its node's router."""

    def __init__(self, app: str, plan: dict):
        self._app, self._plan, self._replica = app, plan, uuid.uuid4().hex
        self._node = ray.get_runtime_context().get_node_id()
        self.url, self._beats, self._failure = None, None, None

    def _host(self):
        name = actor_name(self._app, f"router:{self._node}")
        here = NodeAffinitySchedulingStrategy(self._node, soft=False)
        return RouterHost.options(name=name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
                                  scheduling_strategy=here).remote(self._app, name)

    async def take(self) -> None:
        self._at = await self._host().beat.remote(self._replica, self._plan)
        self.url = self._at["url"]
        if self._beats is None:
            self._beats = asyncio.get_running_loop().create_task(self._beat_forever())

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                await self.take()
                self._failure = None
            except Exception as e:  # noqa: BLE001: whatever it is, check_health tells it
                self._failure = e

    async def check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"no router on this node: {self._failure}") from self._failure

    async def endpoints(self) -> dict:
        port = self.url.rsplit(":", 1)[1]
        return {"direct": f"http://{self._at['host']}:{port}", "pid": self._at["pid"]}

    async def give_back(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
        with contextlib.suppress(ray.exceptions.RayError):
            await self._host().give_back.remote(self._replica)
