"""The engine's metrics through Ray's metrics agent, so that a cluster's existing Prometheus and Grafana see them.

Ray has no way to hand over foreign samples as they are: each becomes a gauge of the same name (`:` is written `_`, and the
agent puts `ray_` in front) with labels that say where it comes from. A histogram travels as its _bucket, _sum and _count,
which is what the dashboards that come with Ray ask for.
"""

import asyncio
import contextlib
from collections.abc import Callable

import aiohttp
from ray.util.metrics import Gauge

from manta_ray.prometheus import samples

_PERIOD_S = 5.0


class MetricsRelay:
    def __init__(self, url: Callable[[], str | None], labels: dict, prefix: str = ""):
        """`url()`: None while there is nobody to ask. Only names that begin with `prefix`."""
        self._url, self._labels, self._prefix, self._gauges = url, labels, prefix, {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PERIOD_S),
                                         connector=aiohttp.TCPConnector(ssl=False)) as session:
            while True:
                url = self._url()
                if url is not None:
                    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                        async with session.get(url + "/metrics") as page:
                            self._record(await page.text())
                await asyncio.sleep(_PERIOD_S)

    def _record(self, text: str) -> None:
        for name, labels, value in samples(text):
            if not name.startswith(self._prefix):
                continue
            tags = {**labels, **self._labels}
            key = (name, *sorted(tags))
            if key not in self._gauges:
                self._gauges[key] = Gauge(name.replace(":", "_"), description=f"{name} of manta", tag_keys=tuple(sorted(tags)))
            self._gauges[key].set(value, tags)
