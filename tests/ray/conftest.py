"""The rules of manta_ray are tested without Ray; what needs Ray runs it from a venv of its own, as users do."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "python"), str(ROOT / "tests/product")]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: only in ./dev test --all")
