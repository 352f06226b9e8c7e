"""A Ray cluster of one machine for the tests, started with the lines that users type, and ended by process id: `ray stop` would
end every Ray on the machine by name.

MANTA_RAY_VENV is a venv with Ray and the wheel of manta in it. Without it these tests are skipped."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import time

import httpx
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = os.environ.get("MANTA_RAY_VENV")
# Ray takes 127.0.0.1 for "wherever I am" and goes to the network; this one it takes as it is.
LOOPBACK = "127.0.0.2"
BIN = pathlib.Path(VENV or "/nonexistent") / "bin"


def free_port() -> int:
    """Neither one the kernel gives out by itself nor one of the range that Ray keeps for its workers (10002 to 19999)."""
    while True:
        port = random.randrange(20000, 29500)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("0.0.0.0", port))
            return port


def processes_with(marker: str):
    """Ids of all processes whose command line or environment holds the marker."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                yield int(entry.name)


def wait_for(condition, timeout, what):
    """What the condition returned once it was true; `what` may be a function that describes the state."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(0.1)  # asks again: there is nothing to be notified by
    return found


def status_of(url: str) -> int:
    """0: nobody answers."""
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.HTTPError:
        return 0


class Cluster:
    """`with Cluster({"prefill": 2, "decode": 2}) as c: c.run(config)`."""

    def __init__(self, resources: dict, num_cpus: int = 4):
        self.resources, self.num_cpus, self._serve = resources, num_cpus, None

    def __enter__(self):
        # Unix socket names under it must stay below 108 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp", ignore_cleanup_errors=True)
        self.marker = self._folder.name
        self.address = f"{LOOPBACK}:{free_port()}"
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self.http_port, self.direct_port, self.metrics_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.direct_url = f"http://{LOOPBACK}:{self.direct_port}"
        self.env = {
            **os.environ, "RAY_ADDRESS": self.address, "MANTA_TEST_MARK": self.marker, "MANTA_RAY_NUM_GPUS": "0",
            "MANTA_RAY_DIRECT_PORT": str(self.direct_port), "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": self.marker}
        self.env.pop("MANTA_BINARY", None)  # the wheel's
        gcs, dashboard = (where.rsplit(":", 1)[1] for where in (self.address, self.dashboard))
        self._do("ray", "start", "--head", f"--resources={json.dumps(self.resources)}", f"--num-cpus={self.num_cpus}",
                 f"--node-ip-address={LOOPBACK}", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={self.marker}",
                 f"--metrics-export-port={self.metrics_port}", f"--dashboard-agent-listen-port={free_port()}",
                 f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000", "--disable-usage-stats")
        return self

    def _do(self, *command, timeout=120):
        done = subprocess.run([str(BIN / command[0]), *command[1:]], env=self.env, cwd=ROOT, capture_output=True, text=True,
                              timeout=timeout)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _write(self, config: dict) -> str:
        path = pathlib.Path(self.marker) / "pd.yaml"
        path.write_text(yaml.safe_dump({**config, "http_options": {"host": "127.0.0.1", "port": self.http_port}}, sort_keys=False))
        return str(path)

    def run(self, config: dict, timeout=180):
        """`serve run FILE`, until the applications run."""
        path = self._write(config)
        with open(pathlib.Path(self.marker) / "serve.log", "w") as log:
            self._serve = subprocess.Popen([str(BIN / "serve"), "run", path], env=self.env, cwd=ROOT, stdout=log,
                                           stderr=subprocess.STDOUT, start_new_session=True)
        self.wait_running(timeout)

    def send(self, config: dict):
        """`serve deploy FILE`."""
        self._do("serve", "deploy", "-a", self.dashboard, self._write(config))

    def deploy(self, config: dict, timeout=180):
        self.send(config)
        self.wait_running(timeout)

    def status(self) -> dict:
        return yaml.safe_load(self._do("serve", "status", "-a", self.dashboard)).get("applications") or {}

    def rest(self) -> dict:
        """The same, and more, over HTTP: much quicker than a Python that imports Ray."""
        return httpx.get(self.dashboard + "/api/serve/applications/", timeout=30).json().get("applications") or {}

    def wait_running(self, timeout=180):
        def running():
            if self._serve is not None:
                assert self._serve.poll() in (None, 0), f"serve run ended:\n{self.log()}"
            with contextlib.suppress(httpx.HTTPError, ValueError):
                found = self.rest()
                assert not any(app["status"] == "DEPLOY_FAILED" for app in found.values()), self.log()
                return found and all(app["status"] == "RUNNING" for app in found.values())
        wait_for(running, timeout, self.log)

    def logs(self) -> dict:
        """{file name: text} of Ray's log folder."""
        folder = pathlib.Path(self.marker) / "session_latest/logs"
        return {p.name: p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()}

    def log(self) -> str:
        out = [f"--- {name}\n{text[-3000:]}" for name, text in sorted(self.logs().items())
               if text.strip() and (name.startswith("worker") or "replica" in name or "controller" in name)]
        with contextlib.suppress(OSError):
            out.append((pathlib.Path(self.marker) / "serve.log").read_text()[-3000:])
        return "\n".join(out)[-30000:]

    def shutdown_serve(self):
        self._do("serve", "shutdown", "-y", "-a", self.dashboard)
        if self._serve is not None:
            self._serve.terminate()
            try:
                self._serve.wait(timeout=60)
            except subprocess.TimeoutExpired:  # Ray 2.51's client, now and then; what is asked for is no process of manta
                self._serve.kill()
                self._serve.wait()

    def processes(self, *words):
        """Ids of this cluster's processes whose command line begins so ("manta engine"; the first word without its folder)."""
        out = []
        for pid in processes_with(self.marker):
            with contextlib.suppress(OSError):
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                command = [os.path.basename(command[0]), *command[1:]]
                if " ".join(command).startswith(" ".join(words)):
                    out.append(pid)
        return sorted(out)

    def __exit__(self, *_):
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in list(processes_with(self.marker)):
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            end = time.monotonic() + 4
            while list(processes_with(self.marker)) and time.monotonic() < end:
                time.sleep(0.1)
        self._folder.cleanup()
