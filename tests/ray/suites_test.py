"""The suites that `manta serve` is held to, through Ray's port and through the direct one: every test of the `openai` client, and
the 600 prompts whose tokens must be the engine's own."""

import types

import pytest
from cluster import VENV, Cluster
from eval_prompts import ask_all, prompts, request
from eval_test import direct_tokens
from openai_test import *  # noqa: F403: its tests run here with another `deployment`
from openai_test import client  # noqa: F401
from pd_file import meaningful, scaled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(VENV is None, reason="MANTA_RAY_VENV is not set: ./dev test ray")]
# They read the labels and counts of one engine's own page, or ask for a second served name, which a pd.yaml has no key for.
del test_models, test_closing_a_stream_frees_the_engine, test_metrics_add_up  # noqa: F821


@pytest.fixture(scope="module")
def cluster():
    config = meaningful(scaled())
    for role in ("prefill_config", "decode_config"):
        config["applications"][0]["args"][role]["model_loading_config"]["model_id"] = "tiny"
        config["applications"][0]["args"][role]["engine_kwargs"].update(
            generation_config="vllm", enable_auto_tool_choice=True, tool_call_parser="deepseek_v3")
    with Cluster({"prefill": 2, "decode": 2}) as made:
        made.run(config)
        yield made


@pytest.fixture(scope="module", params=["ray", "direct"])
def deployment(cluster, request):
    return types.SimpleNamespace(url=cluster.url if request.param == "ray" else cluster.direct_url)


@pytest.fixture(scope="module")
def expected():
    return direct_tokens(600)


def test_the_prompts_give_the_engines_tokens(deployment, expected):
    served = [choices[0] for choices in ask_all(deployment.url, [request(line) for line in prompts(600)], 24)]
    assert [i for i in range(600) if served[i] != expected[i]] == []
