"""The server over TLS."""

import socket
import ssl
import subprocess

import httpx
import pytest

from deployment import Deployment

REQUEST = {"prompt": "Hello", "max_tokens": 50, "stream": True, "ignore_eos": True}


def events(client, url):
    with client.stream("POST", url + "/v1/completions", json=REQUEST) as response:
        assert response.status_code == 200
        return [line for line in response.iter_lines() if line.startswith("data: ")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True)
    return key, cert


def test_tls(certificate):
    key, cert = certificate
    with Deployment("--executor", "fake", "--ssl-keyfile", key, "--ssl-certfile", cert) as running:
        assert running.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusted) as client:
            for _ in range(3):  # the connection is kept
                seen = events(client, running.url)
                assert len(seen) == 51 and seen[-1] == "data: [DONE]"
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url + "/health")  # an unknown authority
        # No TLS at all: the connection ends, and the server goes on.
        port = int(running.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            while plain.recv(4096):
                pass
        with httpx.Client(verify=trusted) as client:
            assert client.get(running.url + "/health").status_code == 200
