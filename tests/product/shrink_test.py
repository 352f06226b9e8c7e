"""An expert-parallel group goes on without a rank that does not come back, and takes it back when it does."""

import json
import os
import signal

import httpx
import pytest

from deployment import metric, wait_until
from expert_parallel_test import GROUP, Deployment, Streams, expected, idle, prompts  # noqa: F401 (a fixture)

EPLB = {"step_interval": 16, "window_size": 16, "num_redundant_experts": 8, "min_gain": 0}
VARIANTS = {
    "from disk": [],
    "from replicas": ["--enable-eplb", "--eplb-config", json.dumps(EPLB)],
    "two microbatches": ["--enable-dbo", "--dbo-decode-token-threshold", 8, "--dbo-prefill-token-threshold", 8],
}


def ranks_in_group(d):
    """As each engine sees it."""
    return {metric(d.url, "manta_ep_group_ranks", engine=rank) for rank in range(4)} - {0}


class NobodyIsReplaced:
    """The process that would start others stands still."""

    def __init__(self, d):
        self.pid = d.process.pid

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGCONT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_survivors_go_on(expected, variant):  # noqa: F811
    with Deployment(*GROUP, *VARIANTS[variant]) as d:
        streams = Streams(d.url, prompts())
        streams.wait_until_all_stream()
        with NobodyIsReplaced(d):
            d.kill("engine", 1)
            assert streams.texts() == expected, "those that were under way"
            wait_until(lambda: ranks_in_group(d) == {3}, "a group of 3")
            assert httpx.get(d.url + "/status").json()["missing_ranks"] == [1]
            assert Streams(d.url, prompts(8)).texts() == expected[:8], "new ones"
            d.kill("engine", 2)
            assert Streams(d.url, prompts(8)).texts() == expected[:8], "with two ranks gone"
            wait_until(lambda: ranks_in_group(d) == {2}, "a group of 2")
        wait_until(lambda: ranks_in_group(d) == {4}, "the replacements were taken in")
        assert Streams(d.url, prompts()).texts() == expected
        idle(d)
    assert "the group goes on" in d.text()


def test_the_others_wait_when_they_must_not_shrink(expected):  # noqa: F811
    with Deployment(*GROUP, "--shrink-after-s", 0) as d:
        streams = Streams(d.url, prompts())
        streams.wait_until_all_stream()
        with NobodyIsReplaced(d):
            d.kill("engine", 1)
            wait_until(lambda: ranks_in_group(d) == set(), "nobody is in a group")
        assert streams.texts() == expected
        idle(d)
        assert metric(d.url, "manta_ep_group_ranks") == 16
    assert "the group goes on" not in d.text()
