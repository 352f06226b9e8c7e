#!/usr/bin/env python3
"""Proves that every header under src/ and apps/ compiles alone, with the flags of its own room's sources.

    check_headers.py BUILD_DIR        # BUILD_DIR holds compile_commands.json and has just been built

Headers of src/backend/cuda need the CUDA toolkit and are left to its own build; entry.h, which everybody includes, is not.
A header that its own .cc includes before anything else was proven by the build. The others are compiled here, and again
only when they, a file they include or their flags changed; BUILD_DIR/header_check.json remembers.
"""
import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def room_flags(build):
    """-> ({folder of a room: (compiler, flags)}, the same of all rooms together, for rooms without sources)"""
    flags, everything, compiler = {}, [], None
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if not path.is_relative_to(ROOT / "src") and not path.is_relative_to(ROOT / "apps"):
            continue
        words = shlex.split(entry["command"])
        words = words[1:] if "ccache" in os.path.basename(words[0]) else words
        compiler = words[0]
        kept = words[1:words.index("-o")]
        flags.setdefault(ROOT.joinpath(*path.relative_to(ROOT).parts[:2]), (compiler, kept))
        everything += [word for word in kept if word not in everything and word != "-isystem"]
    if compiler is None:
        sys.exit(f"{build}/compile_commands.json names no source of src/: configure first (./dev build)")
    return flags, (compiler, as_includes(everything))


def as_includes(words):
    """The words of several command lines merged: a bare folder was the argument of an -isystem that was dropped."""
    return [part for word in words for part in (("-isystem", word) if word.startswith("/") else (word,))]


@functools.cache
def stamp(path):
    path = pathlib.Path(path)
    if path.is_relative_to(ROOT):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    info = path.stat()  # headers of the system: cheap is enough
    return f"{info.st_mtime_ns}:{info.st_size}"


def proven_by_build(header):
    source = header.with_suffix(".cc")
    first = re.search(r"^\s*#\s*include\s+(\S+)", source.read_text(), re.MULTILINE) if source.exists() else None
    tree = ROOT / header.relative_to(ROOT).parts[0]
    return first is not None and first[1] == f'"{header.relative_to(tree)}"'


def needs_cuda(header):
    return header.is_relative_to(ROOT / "src/backend/cuda") and header.name != "entry.h"


def unchanged(record, key):
    try:
        return record is not None and record["key"] == key and all(stamp(p) == s for p, s in record["deps"].items())
    except OSError:
        return False


def compile_alone(header, compiler, flags):
    """-> (files it read, None) or (None, the compiler's message)"""
    alone = ["-fsyntax-only", "-x", "c++", "-include", str(header), "-MD", "-MF", "/dev/stdout", "/dev/null"]
    done = subprocess.run([compiler, *flags, *alone], capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr
    words = done.stdout.replace("\\\n", " ").split(":", 1)[1].split()
    return [os.path.realpath(word) for word in words if word != "/dev/null"], None


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    flags, all_flags = room_flags(build)
    memory = build / "header_check.json"
    old = json.loads(memory.read_text()) if memory.exists() else {}
    new, jobs, by_build = {}, [], 0
    for header in sorted([*(ROOT / "src").rglob("*.h"), *(ROOT / "apps").rglob("*.h")]):
        if needs_cuda(header):
            continue
        if proven_by_build(header):
            by_build += 1
            continue
        name = str(header.relative_to(ROOT))
        compiler, words = flags.get(ROOT.joinpath(*header.relative_to(ROOT).parts[:2]), all_flags)
        key = hashlib.sha256("\0".join([compiler, *words]).encode()).hexdigest()
        if unchanged(old.get(name), key):
            new[name] = old[name]
        else:
            jobs.append((name, header, key, compiler, words))
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda job: compile_alone(job[1], job[3], job[4]), jobs)
        for (name, _, key, *_), (deps, message) in zip(jobs, results):
            if message is None:
                new[name] = {"key": key, "deps": {path: stamp(path) for path in deps}}
            else:
                failed += 1
                print(f"{name}: does not compile alone\n{message}")
    memory.write_text(json.dumps(new))
    how = f"{by_build} shown by the build, {len(jobs) - failed} compiled now"
    print(f"headers: {by_build + len(new)} compile alone ({how}), {failed} do not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
