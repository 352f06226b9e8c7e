"""Several "nodes" on this machine: network and mount namespaces on one switch, each with its own address, /tmp and /dev/shm,
as machines of a cluster have. Ray is started in them with the lines of the README."""

import contextlib
import os
import signal
import subprocess

import pytest


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stderr.strip()


class Node:
    """`command` in front of a program runs it there. Its interface is eth0, which deploy/pd.yaml names."""

    def __init__(self, name, address):
        self.name, self.address = name, address
        hold = "mount --make-rprivate / && mount -t tmpfs tmp /tmp && mount -t tmpfs shm /dev/shm && echo there && exec sleep infinity"
        self._holder = subprocess.Popen(["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", hold], text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = self._holder.stdout.readline().strip()
        if said != "there":
            self.close()
            pytest.skip(f"mount namespaces are not permitted here: {said}")
        self.command = ["nsenter", f"--target={self._holder.pid}", "--mount", "--net"]

    def close(self):
        self._holder.kill()
        self._holder.wait()


@contextlib.contextmanager
def nodes(count):
    tag = f"mr{os.getpid() % 100000}"
    switch = tag + "s"
    names = [f"{tag}n{i}" for i in range(count)]
    made = []
    try:
        for name in [switch, *names]:
            ok, why = run("ip", "netns", "add", name)
            if not ok:
                pytest.skip(f"network namespaces are not permitted here: {why or 'ip netns add failed'}")
            run("ip", "-n", name, "link", "set", "lo", "up")
        gateway = "10.98.7.254"
        for command in (["link", "add", "br0", "type", "bridge"], ["addr", "add", gateway + "/24", "dev", "br0"],
                        ["link", "set", "br0", "up"]):
            ok, why = run("ip", "-n", switch, *command)
            if not ok:
                pytest.skip(f"no bridge between network namespaces: {why}")
        for i, name in enumerate(names):
            address = f"10.98.7.{i + 1}"
            for command in (["link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"port{i}", "netns", switch],
                            ["-n", switch, "link", "set", f"port{i}", "master", "br0", "up"],
                            ["-n", name, "addr", "add", address + "/24", "dev", "eth0"], ["-n", name, "link", "set", "eth0", "up"],
                            ["-n", name, "route", "add", "default", "via", gateway]):
                ok, why = run("ip", *command)
                assert ok, (command, why)
            made.append(Node(name, address))
        yield made
    finally:
        for node in made:
            node.close()
        for name in [*names, switch]:
            # Ray's agents outlive a killed raylet, under a title that hides whose they are.
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name)
