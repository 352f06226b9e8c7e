"""What a pd.yaml may say, and what is answered to what it may not."""

import copy

import pytest
from manta_ray.config import ConfigError, RoleConfig, check_keys, merged

ROLE = {
    "model_loading_config": {"model_id": "tiny", "model_source": "models/tiny-v3"},
    "engine_kwargs": {"data_parallel_size": 4, "enable_expert_parallel": True, "enable_prefix_caching": False,
                      "kv_transfer_config": {"kv_connector": "NixlConnector"}, "seed": None},
    "experimental_configs": {"dp_size_per_node": 2},
    "runtime_env": {"env_vars": {"VLLM_MOE_DP_CHUNK_SIZE": 512}},
}


def role(**changes):
    raw = merged(copy.deepcopy(ROLE), changes)
    return RoleConfig("decode_config", "decode", raw)


def test_engine_kwargs_become_options():
    assert role().flags() == ["--data-parallel-size", "4", "--enable-expert-parallel", "--no-enable-prefix-caching",
                              "--kv-transfer-config", '{"kv_connector": "NixlConnector"}']


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
