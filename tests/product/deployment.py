"""Starts a real deployment (`manta serve`) for a test, and looks at its processes."""

import os
import pathlib
import re
import signal
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANTA = pathlib.Path(os.environ.get("MANTA_BINARY", ROOT / "build/cpu/manta"))
MODEL = "models/tiny-v3"


class Deployment:
    """`with Deployment("--executor", "fake") as d:` — d.url is ready to be used; leaving stops it and checks exit 0."""

    def __init__(self, *flags, model=MODEL, timeout=60, env=None, prefix=()):
        # prefix: a command that runs the rest, such as hosts.Host.command
        self.command = [*prefix, str(MANTA), "serve", model, "--host", "127.0.0.1", "--port", "0", *map(str, flags)]
        self.timeout = timeout
        self.env = {**os.environ, **(env or {})}
        self.log = []
        self.url = None
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
