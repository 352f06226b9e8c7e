"""The files under deploy/: what Kubernetes is given is deploy/pd.yaml, and the nodes have what it asks for."""

import json

import pytest
import yaml
from cluster import ROOT
from manta_ray.config import RoleConfig
from pd_file import CHANGED, FOR_BENCHES, PD_YAML, differences, meaningful, scaled

KUBERAY = ROOT / "deploy/kuberay"


def documents(name):
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


def cluster_spec(document):
    return document["spec"]["rayClusterConfig"] if document["kind"] == "RayService" else document["spec"]


def applications(document):
    return yaml.safe_load(document["spec"]["serveConfigV2"])["applications"]


def roles(application):
    return {role: RoleConfig(f"{role}_config", role, application["args"][f"{role}_config"]) for role in ("prefill", "decode")}


def test_the_tests_file_is_the_one_people_deploy():
    """The scaled file differs from deploy/pd.yaml in the model, counts and names of interfaces and in nothing else."""
    assert {path[-1] for path in differences(PD_YAML, scaled())} <= CHANGED
    assert {path[-1] for path in differences(scaled(), meaningful(scaled()))} == {FOR_BENCHES}


def test_the_service_is_pd_yaml():
    service, *_ = documents("rayservice.yaml")
    assert applications(service) == PD_YAML["applications"]


@pytest.mark.parametrize("name", ["rayservice.yaml", "raycluster.yaml", "rayservice-cpu.yaml"])
def test_the_nodes_have_what_the_ranks_ask_for(name):
    document, direct = documents(name)
    application, = applications(document) if document["kind"] == "RayService" else PD_YAML["applications"]
    workers = {group["groupName"]: group for group in cluster_spec(document)["workerGroupSpecs"]}
    assert workers.keys() == {"prefill", "decode"}
    for role, config in roles(application).items():
        group = workers[role]
        # KubeRay passes the text to a shell: JSON, in double quotes, with those inside escaped.
        there, = json.loads(json.loads(group["rayStartParams"]["resources"])).items()
        asked, = config.deployment["ray_actor_options"]["resources"].items()
        assert there == (role, config.ranks_per_node * asked[1]) and asked[0] == role
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == config.dp_size // config.ranks_per_node
        container, = group["template"]["spec"]["containers"]
        gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        assert gpus == config.ranks_per_node * config.deployment["ray_actor_options"].get("num_gpus", 1)
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        assert {p["name"]: p["containerPort"] for p in container["ports"]} == {"direct": 8001}
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]
        assert group["template"]["metadata"]["labels"] == direct["spec"]["selector"]


@pytest.mark.parametrize("name", ["rayservice.yaml", "raycluster.yaml", "rayservice-cpu.yaml"])
def test_the_image_and_rays_version_are_the_ones_we_pin(name):
    document, _ = documents(name)
    spec = cluster_spec(document)
    dockerfile = (KUBERAY / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={spec['rayVersion']}\n" in dockerfile
    assert (ROOT / f"tools/deps/python-ray-{spec['rayVersion']}.txt").exists()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for image in {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}:
        assert f" AS {image.removeprefix('manta:')}\n" in dockerfile


def test_the_dockerfile_installs_what_exists():
    for line in (KUBERAY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY tools/deps/"):
            assert (ROOT / line.split()[1].replace("${RAY_VERSION}", "2.51.0")).exists(), line
