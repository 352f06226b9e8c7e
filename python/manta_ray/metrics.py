"""The engine's metrics through Ray's metrics agent, so that a cluster's existing Prometheus and Grafana see them.

Ray has no way to hand over foreign samples as they are: each becomes a gauge of the same name (`:` is written `_`, and the
agent puts `ray_` in front) with the labels role, rank and node. A histogram travels as its _bucket, _sum and _count, which is
what the dashboards that come with Ray ask for.
"""

import asyncio
import contextlib
import re

import aiohttp
from ray.util.metrics import Gauge

PERIOD_S = 5.0
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def parse(text: str):
    """(name, labels, value) of every sample of a Prometheus page."""
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if not found:
            continue
        with contextlib.suppress(ValueError):
            yield found.group(1), dict(_LABEL.findall(found.group(2) or "")), float(found.group(3))


class MetricsRelay:
    def __init__(self, url, labels: dict):
        """`url` is asked each time: None while there is nobody to ask."""
        self._url, self._labels, self._gauges = url, labels, {}
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PERIOD_S),
                                         connector=aiohttp.TCPConnector(ssl=False)) as session:
            while True:
                url = self._url()
                if url is not None:
                    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                        async with session.get(url + "/metrics") as page:
                            self.record(await page.text())
                await asyncio.sleep(PERIOD_S)

    def record(self, text: str) -> None:
        for name, labels, value in parse(text):
            tags = {**labels, **self._labels}
            key = (name, *sorted(tags))
            if key not in self._gauges:
                self._gauges[key] = Gauge(name.replace(":", "_"), description=f"{name} of manta", tag_keys=tuple(sorted(tags)))
            self._gauges[key].set(value, tags)
