"""Replays tests/product/chats/*.chat: requests and, word for word, what the embedded model's server answers.

A file is a list of exchanges. `# ` lines before the first are comments, but `# flags:` gives the server's flags.

    > POST /v1/chat/completions
    {the request's body}
    < 200
    the answer: a JSON body over several lines, or one line per event of a stream

What differs from run to run (ids, times) is written as "*". Keys whose value is null are left out, so that a diff shows
what a reader looks for. MANTA_UPDATE_CHATS=1 writes the answers of this build into the files; git diff then shows what
changed.
"""

import json
import os
import pathlib

import httpx
import pytest

from deployment import Deployment

FILES = sorted((pathlib.Path(__file__).parent / "chats").glob("*.chat"))
UPDATE = os.environ.get("MANTA_UPDATE_CHATS")
VARIES = {"id", "created"}


def tidy(value):
    if isinstance(value, dict):
        return {key: "*" if key in VARIES else tidy(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    if isinstance(value, float):
        return round(value, 3)
    return value


def read_file(path):
    """-> (comments, flags, [(request line, body lines, answer lines)])"""
    comments, flags, exchanges, part = [], [], [], None
    for line in path.read_text().splitlines():
        if line.startswith("> "):
            exchanges.append((line[2:], [], []))
            part = exchanges[-1][1]
        elif line.startswith("< ") and part is not None:
            part = exchanges[-1][2]
            part.append(line)
        elif part is None:
            comments.append(line)
            if line.startswith("# flags:"):
                flags = line.removeprefix("# flags:").split()
        elif line:
            part.append(line)
    return comments, flags, exchanges


def answer_lines(response):
    lines = [f"< {response.status_code}"]
    if response.headers["content-type"].startswith("text/event-stream"):
        for event in response.text.split("\n\n"):
            data = event.removeprefix("data: ")
            if data:
                lines.append(data if data == "[DONE]" else json.dumps(tidy(json.loads(data)), ensure_ascii=False))
    elif response.text:
        lines += json.dumps(tidy(response.json()), indent=1, ensure_ascii=False).splitlines()
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_chat_file(path):
    comments, flags, exchanges = read_file(path)
    assert exchanges, f"{path.name} holds no exchange"
    out = list(comments)
    with Deployment("--served-model-name", "tiny", "--generation-config", "vllm", *flags) as running:
        for request, body, expected in exchanges:
            method, target = request.split(" ", 1)
            response = httpx.request(method, running.url + target, content="\n".join(body).encode(), timeout=60,
                                     headers={"Content-Type": "application/json"})
            got = answer_lines(response)
            out += [f"> {request}", *body, *got, ""]
            if not UPDATE:
                assert got == expected, f"{path.name}: {request}"
    if UPDATE:
        path.write_text("\n".join(out).rstrip("\n") + "\n")


def test_there_are_chat_files():
    assert len(FILES) >= 6
