"""`import_path: pd_dpep_builder:build_pd_dp_openai_app` of a pd.yaml: what `serve run pd.yaml` calls."""

from manta_ray.builder import build_decode_app, build_dp_openai_app, build_pd_dp_openai_app, build_prefill_app

__all__ = ["build_decode_app", "build_dp_openai_app", "build_pd_dp_openai_app", "build_prefill_app"]
