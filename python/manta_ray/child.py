"""A `manta` process that belongs to a Ray actor: it dies with the actor, says where it listens, and is drained at the end."""

import asyncio
import ctypes
import json
import os
import shlex
import signal
import subprocess
import tempfile

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """stdout and stderr are the actor's own, so that every line lands in Ray's log folder beside the worker's."""

    def __init__(self, name: str, arguments: list, environment: dict | None = None):
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="manta-ray-")
        self.ready_file = os.path.join(self._folder.name, "ready.json")
        command = [*arguments, "--ready-file", self.ready_file]
        print(f"[{name}] {shlex.join(command)}", flush=True)
        self.process = subprocess.Popen(  # noqa: S603: the command is ours
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise RuntimeError(f"{self.name} (pid {self.pid}) ended with exit code {code}; its last lines are in this replica's log")

    async def ready(self, deadline_s: float) -> dict:
        """What the process says when it can serve: {"url": …, …}. Raises when it ends first or the deadline passes."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while True:
            self.check()
            try:
                with open(self.ready_file, encoding="utf-8") as file:
                    return json.load(file)
            except FileNotFoundError:
                pass  # written under another name and renamed: it is whole once it is here
            if loop.time() > end:
                raise TimeoutError(f"{self.name} (pid {self.pid}) is not ready after {deadline_s:.0f} s")
            await asyncio.sleep(0.05)

    async def drain(self, patience_s: float) -> None:
        """SIGTERM: finishes its streams and ends. After patience_s it is killed."""
        if self.process.poll() is None:
            self.process.terminate()
            loop = asyncio.get_running_loop()
            end = loop.time() + patience_s
            while self.process.poll() is None and loop.time() < end:
                await asyncio.sleep(0.05)
            if self.process.poll() is None:
                self.process.kill()
        self.process.wait()
        self._folder.cleanup()
