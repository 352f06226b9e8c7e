"""Reads a Prometheus page."""

import contextlib
import re

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


def samples(text: str):
    """(name, labels, value) of every sample."""
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if not found:
            continue
        labels = {k: _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], v) for k, v in _LABEL.findall(found.group(2) or "")}
        with contextlib.suppress(ValueError):
            yield found.group(1), labels, float(found.group(3))
