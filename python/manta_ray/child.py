"""A `manta` process that belongs to a Ray actor: it dies with the actor, says where it listens, and is drained at the end."""

import asyncio
import collections
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    # Not SIGTERM: another replica takes this one's place within seconds, and a process that drains would still be in it.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """What it prints goes where the actor's own output goes, so that every line lands in Ray's log folder and on the actor's
    page; its last log lines are kept, for the error that `serve status` shows."""

    def __init__(self, name: str, arguments: list, environment: dict | None = None, has_ready_file: bool = True):
        self.name = name
        self._folder = None
        command = list(arguments)
        if has_ready_file:
            self._folder = tempfile.TemporaryDirectory(prefix="manta-ray-")
            self._ready_file = os.path.join(self._folder.name, "ready.json")
            command += ["--ready-file", self._ready_file]
        print(f"[{name}] {shlex.join(command)}", flush=True)
        self.process = subprocess.Popen(  # noqa: S603: the command is ours
            command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_die_with_parent)
        self._last_lines = collections.deque(maxlen=5)
        self._pump = threading.Thread(target=self._pass_on, daemon=True)
        self._pump.start()

    def _pass_on(self) -> None:
        with self.process.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace")
                self._last_lines.append(text.strip())
                sys.stderr.write(text)
                sys.stderr.flush()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    async def ended(self) -> int:
        """Its exit code, once it has one."""
        if self.alive:
            loop = asyncio.get_running_loop()
            over = loop.create_future()
            handle = os.pidfd_open(self.pid)
            loop.add_reader(handle, lambda: over.done() or over.set_result(None))
            try:
                await over
            finally:
                loop.remove_reader(handle)
                os.close(handle)
        return self.process.wait()

    async def ready(self) -> dict:
        """What the process says when it can serve: {"url": …, "pid": …}. Raises when it ends first: how long it may take is its
        own setting (engine_ready_timeout_s)."""
        while True:
            try:
                with open(self._ready_file, encoding="utf-8") as file:
                    return json.load(file)
            except FileNotFoundError:
                pass  # written under another name and renamed: it is whole once it is here
            if not self.alive:
                self._pump.join(1.0)  # its children may hold the other end a moment longer
                raise RuntimeError(f"{self.name} (pid {self.pid}) ended with exit code {self.process.returncode} before it was ready: "
                                   + " | ".join(line for line in self._last_lines if line))
            await asyncio.sleep(0.05)

    async def drain(self, patience_s: float) -> None:
        """SIGTERM: finishes its streams and ends. After patience_s it is killed."""
        if self.alive:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.ended(), patience_s)
            except asyncio.TimeoutError:
                print(f"[{self.name}] still busy after {patience_s:.0f} s: killed", flush=True)
                self.process.kill()
        self.process.wait()
        if self._folder is not None:
            self._folder.cleanup()
