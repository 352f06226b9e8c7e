"""One named actor per group of ranks: hands out DP ranks and keeps the group's coordinator process.

The coordinator lives here and not in rank 0, so that no rank is special: any of them may die and come back without the
others losing their group. The actor is on the head node: what dies with a node of GPUs should be its ranks and nothing else.
"""

import asyncio
import socket
import time
import zlib

import ray

from manta_ray.child import Child
from manta_ray.config import manta_binary
from manta_ray.node import this_node
from manta_ray.rank_table import RankTable

NAMESPACE = "manta"
BEAT_S = 1.0
LEASE_S = 5.0
# Nobody needed the group for so long: the application is gone, and what it started must not outlive it.
ABANDONED_AFTER_S = 15.0


def actor_name(app: str, what: str) -> str:
    return f"manta:{app}:{what}"


def group_port(host: str, app: str, group: str) -> int:
    """The same port each time where it is free, so that an actor that was restarted is found where the ranks left it."""
    preferred = 29550 + zlib.crc32(f"{app}/{group}".encode()) % 1000
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise RuntimeError(f"no free port on {host}")


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000)
class Rendezvous:
    async def __init__(self, app: str, group: str, dp_size: int, ranks_per_node: int):
        self._name = actor_name(app, group)
        self._group = group
        born_again = ray.get_runtime_context().was_current_actor_reconstructed
        self._table = RankTable(dp_size, ranks_per_node, LEASE_S, time.monotonic() + LEASE_S if born_again else 0.0)
        _, host = this_node()
        self._address = f"tcp:{host}:{group_port(host, app, group)}"
        self._places: dict[int, dict] = {}
        self._routers: dict[str, tuple] = {}  # by node: (url, when it was last heard of)
        self._last_needed = time.monotonic()
        self._start_coordinator()
        self._watch = asyncio.get_running_loop().create_task(self._watch_forever())

    def _start_coordinator(self) -> None:
        self._coordinator = Child(
            f"{self._group} coordinator", [manta_binary(), "coordinator", "--listen", self._address], has_ready_file=False)

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if time.monotonic() - self._last_needed > ABANDONED_AFTER_S:
                await self._coordinator.drain(2.0)
                ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))
                return
            if not self._coordinator.alive:
                self._start_coordinator()  # same port: the ranks connect again by themselves

    def _needed(self) -> float:
        self._last_needed = time.monotonic()
        return self._last_needed

    async def register(self, replica: str, node: str) -> int | None:
        return self._table.register(replica, node, self._needed())

    async def beat(self, replica: str, node: str, rank: int, place: dict) -> dict:
        """A rank's lease and whereabouts; back comes the state of the group."""
        mine = self._table.claim(replica, node, rank, self._needed())
        if mine:
            self._places[rank] = place
        return {"mine": mine, "epoch": self._table.epoch, "coordinator": self._address}

    async def release(self, replica: str) -> None:
        self._table.release(replica)
        if not self._table.seats:  # taken down in order: nobody is expected back
            self._last_needed = min(self._last_needed, time.monotonic() - ABANDONED_AFTER_S + 2 * BEAT_S)

    async def coordinator(self) -> str:
        self._needed()
        return self._address

    async def follow(self, node: str, url: str | None, wanted: bool) -> str:
        """A router's question where the coordinator is, and where that router itself is. A group that the routers want no more
        ends when its ranks have."""
        if wanted:
            self._needed()
        self._routers[node] = (url, time.monotonic())
        return self._address

    async def routers(self) -> list:
        """The URLs of all nodes' routers."""
        young = time.monotonic() - LEASE_S
        return sorted(url for url, seen in self._routers.values() if url and seen > young)

    async def standing(self) -> dict:
        """How many of its ranks have an actor, and how many of them serve."""
        self._table.expire(time.monotonic())
        seats = self._table.seats
        return {"size": self._table.dp_size, "seated": len(seats),
                "ready": sum(1 for rank, place in self._places.items() if rank in seats and place["url"])}


async def successor_standing(app: str, group: str) -> dict | None:
    """Of the group that takes this one's place, if there is one: the same application and role, another configuration."""
    role = group.rsplit("-", 1)[0]
    for name in ray.util.list_named_actors(all_namespaces=True):
        if name["namespace"] == NAMESPACE and name["name"].startswith(actor_name(app, role + "-")) and \
                name["name"] != actor_name(app, group):
            try:
                found = await ray.get_actor(name["name"], namespace=NAMESPACE).standing.remote()
            except (ValueError, ray.exceptions.RayActorError):
                continue  # it has ended
            if found["seated"]:
                return found
    return None


class Group:
    """The handle of a group's actor. Whoever comes first makes the actor; it is detached, because it must survive the replica
    that made it, and ends by itself when nobody needs it any more."""

    def __init__(self, app: str, group: str, dp_size: int, ranks_per_node: int):
        self._arguments = (app, group, dp_size, ranks_per_node)
        self._make()

    def _make(self) -> None:
        app, group, *_ = self._arguments
        self._actor = Rendezvous.options(
            name=actor_name(app, group), namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
            resources={"node:__internal_head__": 0.001}).remote(*self._arguments)

    async def ask(self, method: str, *arguments):
        """Calls a method of the actor; one that has ended meanwhile is made anew."""
        while True:
            try:
                return await getattr(self._actor, method).remote(*arguments)
            except ray.exceptions.RayActorError:
                await asyncio.sleep(BEAT_S)
                self._make()

    async def ask_if_alive(self, method: str, *arguments):
        """None when the actor has ended."""
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayActorError:
            return None
