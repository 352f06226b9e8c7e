"""One named actor per role: hands out DP ranks and keeps the coordinator process of the group.

The coordinator lives here and not in rank 0, so that no rank is special: any of them may die and come back without the
others losing their group.
"""

import asyncio
import socket
import time
import zlib

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from manta_ray.child import Child
from manta_ray.config import manta_binary
from manta_ray.rank_table import RankTable

NAMESPACE = "manta"
# Nobody asked for so long: the application is gone, and what it started must not outlive it.
ABANDONED_AFTER_S = 30.0
_BEAT_S = 1.0


def actor_name(app: str, what: str) -> str:
    return f"manta:{app}:{what}"


def group_port(host: str, app: str, role: str) -> int:
    """The same port each time where it is free, so that an actor that was restarted is found where the ranks left it."""
    preferred = 29550 + zlib.crc32(f"{app}/{role}".encode()) % 1000
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
    async def __init__(self, app: str, role: str, dp_size: int, ranks_per_node: int):
        self._app, self._role, self._table = app, role, RankTable(dp_size, ranks_per_node)
        self._host = ray.util.get_node_ip_address()
        self._port = group_port(self._host, app, role)
        self._places: dict[int, dict] = {}
        self._last_asked = time.monotonic()
        self._start_coordinator()
        self._watch = asyncio.get_running_loop().create_task(self._watch_forever())

    def _start_coordinator(self) -> None:
        self._coordinator = Child(
            f"{self._role} coordinator",
            [manta_binary(), "coordinator", "--listen", f"tcp:{self._host}:{self._port}"])

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            if time.monotonic() - self._last_asked > ABANDONED_AFTER_S:
                await self._coordinator.drain(2.0)
                ray.kill(ray.get_actor(actor_name(self._app, self._role), namespace=NAMESPACE))
            if self._coordinator.process.poll() is not None:
                self._start_coordinator()  # same port: the ranks connect again by themselves

    def _asked(self) -> float:
        self._last_asked = time.monotonic()
        return self._last_asked

    async def register(self, replica: str, node: str) -> int | None:
        return self._table.register(replica, node, self._asked())

    async def beat(self, replica: str, place: dict) -> dict:
        """A rank's lease and whereabouts; back comes the state of the group."""
        alive = self._table.beat(replica, self._asked())
        for rank, seat in self._table.seats.items():
            if seat.replica == replica:
                self._places[rank] = place
        return {"alive": alive, "epoch": self._table.epoch, "coordinator": f"{self._host}:{self._port}"}

    async def release(self, replica: str) -> None:
        self._asked()
        self._table.release(replica)

    async def coordinator(self) -> dict:
        self._asked()
        return {"host": self._host, "port": self._port}

    async def places(self) -> dict:
        """Where the seated ranks are: {rank: {"host", "pid", "url", …}}."""
        self._asked()
        self._table.expire(time.monotonic())
        return {rank: place for rank, place in sorted(self._places.items()) if rank in self._table.seats}


def rendezvous(app: str, role: str, dp_size: int, ranks_per_node: int):
    """The group's actor, made by whoever comes first, on its node. Detached: it must survive the replica that made it; it
    ends by itself when nobody needs it any more."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Rendezvous.options(
        name=actor_name(app, role), namespace=NAMESPACE, lifetime="detached", get_if_exists=True,
        scheduling_strategy=here).remote(app, role, dp_size, ranks_per_node)
