"""Starts real deployments (`manta serve`, `manta up`) and routers for a test, and looks at their processes."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import httpx
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANTA = pathlib.Path(os.environ.get("MANTA_BINARY", ROOT / "build/cpu/manta"))
MODEL = "models/tiny-v3"
LOCAL = ROOT / "deploy/local.yaml"


class Process:
    """`with Deployment("--executor", "fake") as d:` — d.url is ready to be used; leaving stops it and checks exit 0."""

    def __init__(self, command, timeout=60, env=None):
        self.command = [*map(str, command)]
        self.timeout = timeout
        self.env = {**os.environ, **(env or {})}
        self.log = []
        self.heard_at = []  # when, of each line
        self.url = None
        self.process = None
        self._ready = threading.Event()
        self._asked_to_stop = False

    def __enter__(self):
        self.start()
        return self.wait_ready()

    def start(self):
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self):
        if not self._ready.wait(self.timeout) or self.url is None:
            self.process.kill()
            raise AssertionError("not ready:\n" + "".join(self.log[-50:]))
        return self

    def _read(self):
        for line in self.process.stdout:
            self.heard_at.append(time.monotonic())
            self.log.append(line)
            found = re.search(r"API\s+(https?://\S+)/v1", line)
            if found:
                self.url = found.group(1)
                self._ready.set()
            if "API          on the head's node" in line:  # --headless
                self.url = ""
                self._ready.set()
        self._ready.set()  # it ended

    def terminate(self):
        """Asks it to drain. A second SIGTERM would mean "leave at once", so leaving the `with` sends none after this."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self.process.send_signal(signal.SIGTERM)

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.terminate()
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("did not drain:\n" + "".join(self.log[-50:])) from None
        if kind is None:
            assert code == 0, f"exit code {code}:\n" + "".join(self.log[-50:])

    def children(self, what):
        """Process ids of its children of one kind: "engine", "api", "coordinator"."""
        out = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text()
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            parent = int(stat.rsplit(")", 1)[1].split()[1])
            if parent == self.process.pid and len(command) > 1 and command[1].decode() == what:
                out.append(int(entry.name))
        return sorted(out)

    def kill(self, what, index=0, sig=signal.SIGKILL):
        pid = self.children(what)[index]
        os.kill(pid, sig)
        return pid

    def text(self):
        return "".join(self.log)

    def line_at(self, pattern, since=0.0):
        """When the log first said it, from then on; None: not yet."""
        for at, line in zip(self.heard_at, list(self.log)):
            if at >= since and re.search(pattern, line):
                return at
        return None


ADDRESS = ["--host", "127.0.0.1", "--port", "0"]


class Deployment(Process):
    """`manta serve`. prefix: a command that runs the rest, such as hosts.Host.command."""

    def __init__(self, *flags, model=MODEL, prefix=(), **options):
        super().__init__([*prefix, MANTA, "serve", model, *ADDRESS, *flags], **options)


class Router(Process):
    def __init__(self, *flags, model=(MODEL,), **options):
        super().__init__([MANTA, "router", *model, *ADDRESS, *flags], **options)


class Up(Process):
    def __init__(self, file=LOCAL, *flags, **options):
        super().__init__([MANTA, "up", file, *ADDRESS, *flags], **options)


def wait_until(condition, what, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def metric(url, name, **labels):
    """Sum over the samples that have these labels. A name that is not there at all is a mistake, not a 0."""
    lines = httpx.get(url + "/metrics", timeout=30).text.splitlines()
    found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    assert found, f"no {name} in /metrics"
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(f'{k}="{v}"' in line for k, v in labels.items()))


def write_yaml(folder, change):
    """deploy/local.yaml with change(args, file) applied."""
    file = yaml.safe_load(LOCAL.read_text())
    change(file["applications"][0]["args"], file)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(file))
    return path
