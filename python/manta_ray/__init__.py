"""Ray Serve runs the processes of manta: one replica per DP rank, one router per node. Tokens pass from the engines to the
clients through the router's own port; Ray's HTTP port relays the same bytes. Only the public API of `ray.serve` is used."""

from manta_ray.builder import build_decode_app, build_dp_openai_app, build_pd_dp_openai_app, build_prefill_app

__all__ = ["build_decode_app", "build_dp_openai_app", "build_pd_dp_openai_app", "build_prefill_app"]
