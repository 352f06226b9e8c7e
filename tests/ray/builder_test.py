"""Applications built from deploy/pd.yaml itself, in the Python that has Ray, without a cluster."""

import json
import subprocess

import pytest
from cluster import BIN, ROOT, VENV
from pd_file import PD_YAML

pytestmark = pytest.mark.skipif(VENV is None, reason="MANTA_RAY_VENV is not set: ./dev test ray")

BUILD = """
import json, sys
import pd_dpep_builder
name, args = json.load(sys.stdin)
try:
    getattr(pd_dpep_builder, name)(args)
    said = ""
except ValueError as e:
    said = str(e)
print(json.dumps([said, sorted(m for m in sys.modules if m.split(".")[0] in ("vllm", "torch") or m.startswith("ray.llm"))]))
"""
ARGS = PD_YAML["applications"][0]["args"]


def build(name, args):
    done = subprocess.run([str(BIN / "python"), "-c", BUILD], input=json.dumps([name, args]), cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    said, forbidden = json.loads(done.stdout.splitlines()[-1])
    assert forbidden == []
    return said


@pytest.mark.parametrize("name, args", [
    ("build_pd_dp_openai_app", ARGS),
    ("build_dp_openai_app", {"llm_config": ARGS["decode_config"]}),
    ("build_prefill_app", {"prefill_config": ARGS["prefill_config"]}),
    ("build_decode_app", {"decode_config": ARGS["decode_config"]}),
])
def test_the_file_as_it_is_builds(name, args):
    assert build(name, args) == ""


@pytest.mark.parametrize("change, says", [
    ({"decode_confg": {}}, "args: unknown key 'decode_confg'; did you mean decode_config?"),
    ({"direct_port": "x"}, "args.direct_port: 'x'; a whole number of at least 0 is expected"),
    ({"ingress_deployment_config": {"autoscaling": {}}}, "did you mean autoscaling_config?"),
    ({"decode_config": {**ARGS["decode_config"], "deployment_config": {"num_replicas": 3}}},
     "decode_config.deployment_config.num_replicas: a group of data_parallel_size 32 has exactly that many replicas"),
    ({"decode_config": {**ARGS["decode_config"], "model_loading_config": {"model_id": "other"}}}, "both serve one model"),
    ({"prefill_config": {**ARGS["prefill_config"], "deployment_config": {
        "request_router_config": {"request_router_class": "my.module:PrefixCacheAfinityRouter"}}}}, "known: PrefixCacheAffinityRouter"),
])
def test_a_mistake_is_named(change, says):
    assert says in build("build_pd_dp_openai_app", {**ARGS, **change})
