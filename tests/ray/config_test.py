"""What a pd.yaml may say, and what is answered to what it may not."""

import copy

import pytest
from manta_ray.config import ConfigError, RoleConfig, check_keys

ROLE = {
    "model_loading_config": {"model_id": "tiny", "model_source": "models/tiny-v3"},
    "engine_kwargs": {"data_parallel_size": 4, "enable_expert_parallel": True, "enable_prefix_caching": False,
                      "kv_transfer_config": {"kv_connector": "NixlConnector"}, "seed": None},
    "experimental_configs": {"dp_size_per_node": 2},
    "runtime_env": {"env_vars": {"VLLM_MOE_DP_CHUNK_SIZE": 512}},
}


def role(**changes):
    raw = copy.deepcopy(ROLE)
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return RoleConfig("decode_config", "decode", raw)


def test_engine_kwargs_become_options():
    assert role().rank_options() == ["--data-parallel-size=4", "--enable-expert-parallel", "--no-enable-prefix-caching",
                                     '--kv-transfer-config={"kv_connector": "NixlConnector"}']


def test_what_guards_the_door_goes_to_the_router_and_secrets_go_nowhere_visible():
    guarded = role(engine_kwargs={"api_key": "s3cret", "ssl_keyfile": "/k.pem"})
    assert "--ssl-keyfile=/k.pem" in guarded.router_options()
    assert not any("ssl" in option for option in guarded.rank_options())
    assert "s3cret" not in " ".join([*guarded.router_options(), *guarded.rank_options()])
    assert guarded.environment["MANTA_API_KEY"] == "s3cret"


def test_the_side_channel_takes_any_port_unless_one_is_named():
    host, port = "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT"
    assert role().side_channel("10.0.0.7") == {host: "10.0.0.7", port: "0"}
    assert role(experimental_configs={"NIXL_SIDE_CHANNEL_PORT_BASE": 22000}).side_channel("10.0.0.7")[port] == "22000"
    assert role(runtime_env={"env_vars": {port: 23000}}).side_channel("10.0.0.7") == {host: "10.0.0.7"}
    assert role(engine_kwargs={"nixl_side_channel_port": 5}).side_channel("10.0.0.7") == {host: "10.0.0.7"}
    assert role(engine_kwargs={"kv_transfer_config": None}).side_channel("10.0.0.7") == {}


def test_variables_are_text():
    assert role().environment == {"VLLM_MOE_DP_CHUNK_SIZE": "512"}


@pytest.mark.parametrize("changes, says", [
    ({"engine_kwarg": {}}, "decode_config: unknown key 'engine_kwarg'; did you mean engine_kwargs?"),
    ({"model_loading_config": {"model_idd": "x"}}, "did you mean model_id?"),
    ({"model_loading_config": {"model_id": ""}}, "model_loading_config.model_id"),
    ({"model_loading_config": {"model_source": {"bucket_uri": "s3://x"}}}, "cloud mirrors are not supported"),
    ({"engine_kwargs": {"data_parallel_size": "many"}}, "data_parallel_size: 'many'; a whole number"),
    ({"experimental_configs": {"dp_size_per_node": 3}}, "dp_size_per_node: 3 does not divide engine_kwargs.data_parallel_size 4"),
    ({"llm_engine": "other"}, "llm_engine: 'other'"),
    ({"engine_kwargs": {"port": 80}}, "decode_config.engine_kwargs.port: Ray's http_options.port"),
    ({"engine_kwargs": {"data_parallel_rank": 1}}, "given out to the Serve replicas; leave it out"),
])
def test_what_cannot_be_is_named(changes, says):
    with pytest.raises(ConfigError) as refused:
        role(**changes)
    assert says in str(refused.value)


def test_a_changed_configuration_is_another_group():
    assert role().group == role().group
    assert role().group != role(engine_kwargs={"data_parallel_size": 2}).group


def test_keys_without_a_near_name_are_answered_with_all_of_them():
    with pytest.raises(ConfigError, match="known: alpha, beta"):
        check_keys("args", {"zzzzz": 1}, {"beta", "alpha"})
