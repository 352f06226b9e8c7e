"""Two "hosts" on this machine: network and mount namespaces, joined by a virtual cable. What runs in one shares neither
addresses, abstract sockets nor /dev/shm with the other, as on two machines."""

import contextlib
import os
import subprocess

import pytest

ADDRESSES = ("10.97.41.1", "10.97.41.2")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stderr.strip()


class Host:
    """`command` in front of a program runs it there; tests reach its servers through `urlopen`-like helpers run there."""

    def __init__(self, name, address, interface):
        self.name, self.address, self.interface = name, address, interface
        # `ip netns exec` brings the network and a mount namespace; the fresh /dev/shm is what a host of its own has.
        self.command = ["ip", "netns", "exec", name, "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]


@contextlib.contextmanager
def two_hosts():
    names = [f"manta{os.getpid()}{side}" for side in "ab"]
    ends = [f"mt{os.getpid() % 100000}{side}" for side in "ab"]
    for name in names:
        ok, why = run("ip", "netns", "add", name)
        if not ok:
            for made in names:
                run("ip", "netns", "del", made)
            pytest.skip(f"network namespaces are not permitted here: {why or 'ip netns add failed'}")
    try:
        ok, why = run("ip", "link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1],
                      "netns", names[1])
        if not ok:
            pytest.skip(f"no virtual cable between network namespaces: {why}")
        for name, end, address in zip(names, ends, ADDRESSES):
            for command in (["link", "set", "lo", "up"], ["addr", "add", f"{address}/24", "dev", end],
                            ["link", "set", end, "up"]):
                ok, why = run("ip", "-n", name, *command)
                assert ok, why
        hosts = [Host(*parts) for parts in zip(names, ADDRESSES, ends)]
        ok, why = run(*hosts[0].command, "true")
        if not ok:
            pytest.skip(f"mount namespaces are not permitted here: {why}")
        yield hosts
    finally:
        for name in names:
            run("ip", "netns", "del", name)
