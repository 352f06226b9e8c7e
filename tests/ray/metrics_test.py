from manta_ray.prometheus import samples

PAGE = """# HELP vllm:num_requests_running Requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny \\"v3\\"",engine="0"} 3
vllm:e2e_request_latency_seconds_bucket{le="0.5"} 7
vllm:e2e_request_latency_seconds_sum 1.5
manta_membership_epoch 4
broken line
"""


def test_samples_and_labels():
    assert list(samples(PAGE)) == [
        ("vllm:num_requests_running", {"model_name": 'tiny "v3"', "engine": "0"}, 3.0),
        ("vllm:e2e_request_latency_seconds_bucket", {"le": "0.5"}, 7.0),
        ("vllm:e2e_request_latency_seconds_sum", {}, 1.5),
        ("manta_membership_epoch", {}, 4.0)]
