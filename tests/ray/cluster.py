"""A Ray cluster of one machine for the tests, started with the lines that users type, and ended by process id: `ray stop` would
end every Ray on the machine by name."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processes_with(marker: str):
    """Ids of all processes whose command line or environment holds the marker."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                yield int(entry.name)


class Cluster:
    """`with Cluster({"prefill": 2, "decode": 2}) as c: c.deploy(config)`."""

    def __init__(self, resources: dict):
        self.resources = resources

    def __enter__(self):
        # Unix socket names under it must stay below 108 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="mr-", dir="/tmp")  # noqa: S108
        self.marker = self._folder.name
        self.port = free_port()
        self.env = {
            **os.environ, "RAY_ADDRESS": f"127.0.0.1:{self.port}", "MANTA_TEST_MARK": self.marker, "MANTA_RAY_NUM_GPUS": "0",
            "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "MANTA_RAY_DRAIN_S": "10",
        }
        self._run("ray", "start", "--head", f"--port={self.port}", f"--temp-dir={self.marker}", "--num-cpus=4",
                  "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
                  "--object-store-memory=100000000", f"--resources={yaml.safe_dump(self.resources, default_flow_style=True).strip()}"
                  .replace("'", '"'))
        return self

    def _run(self, *command, timeout=120):
        done = subprocess.run([str(BIN / command[0]), *command[1:]], env=self.env, cwd=ROOT, capture_output=True, text=True,
                              timeout=timeout)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def deploy(self, config: dict, timeout=180) -> str:
        """`serve run FILE` in the background; the URL of Ray's HTTP port once the application runs."""
        self.http_port = free_port()
        config = {**config, "http_options": {"host": "127.0.0.1", "port": self.http_port}}
        path = pathlib.Path(self.marker) / "pd.yaml"
        path.write_text(yaml.safe_dump(config))
        self._log = open(pathlib.Path(self.marker) / "serve.log", "w")  # noqa: SIM115: closed at the end
        self._serve = subprocess.Popen([str(BIN / "serve"), "run", str(path)], env=self.env, cwd=ROOT, stdout=self._log,
                                       stderr=subprocess.STDOUT, start_new_session=True)
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.wait_for(lambda: get(self.url + "/health")[0] == 200, timeout, "the application does not come up")
        return self.url

    def wait_for(self, condition, timeout, what):
        end = time.monotonic() + timeout
        while not condition():
            code = self._serve.poll()
            assert code in (None, 0), f"serve run ended with {code}:\n{self.log()}"
            assert time.monotonic() < end, f"{what} within {timeout} s:\n{self.log()}"
            time.sleep(0.2)  # asks again: there is nothing to be notified by

    def log(self) -> str:
        out = []
        for path in sorted(pathlib.Path(self.marker).glob("session_latest/logs/**/*")) + [pathlib.Path(self.marker) / "serve.log"]:
            if path.is_file() and (path.suffix in (".err", ".out") or "serve" in path.name):
                text = path.read_text(errors="replace")[-1500:]
                if text.strip():
                    out.append(f"--- {path.name}\n{text}")
        return "\n".join(out)[-20000:]

    def shutdown_serve(self):
        self._run("serve", "shutdown", "-y")
        self._serve.wait(timeout=60)

    def manta_processes(self):
        out = []
        for pid in processes_with(self.marker):
            with contextlib.suppress(OSError):
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if pathlib.Path(command[0].decode()).name == "manta":
                    out.append((pid, [part.decode() for part in command[1:] if part]))
        return out

    def __exit__(self, *_):
        with contextlib.suppress(AttributeError):
            self._serve.send_signal(signal.SIGTERM)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in list(processes_with(self.marker)):
                with contextlib.suppress(OSError):
                    os.kill(pid, sig)
            end = time.monotonic() + 10
            while list(processes_with(self.marker)) and time.monotonic() < end:
                time.sleep(0.1)
        with contextlib.suppress(OSError):
            self._folder.cleanup()


def get(url: str, timeout=5):
    """(status, body); (0, reason) when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except (OSError, urllib.error.URLError) as e:
        return 0, str(e)
