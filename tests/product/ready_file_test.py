"""--ready-file tells who started the server where it listens."""

import json
import subprocess

from deployment import Deployment


def test_the_file_names_the_url_and_the_process(tmp_path):
    path = tmp_path / "ready.json"
    with Deployment("--executor", "fake", "--ready-file", path) as d:
        assert json.loads(path.read_text()) == {"url": d.url, "pid": d.process.pid}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "missing" / "ready.json"
    command = Deployment("--executor", "fake", "--ready-file", path).command
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert f"--ready-file {path}" in ended.stderr
