#!/usr/bin/env python3
"""Encode speed of our tokenizer over Hugging Face `tokenizers`, one thread each, same texts, same run, CPU time.

    python bench/tokenizer_bench.py --bench build/cpu/bench/manta_tokenizer_bench --tokenizer TOKENIZER.json

Prints one JSON line per set of texts. The sets: prose and code of this repository, chat prompts (tests/golden/eval.jsonl), Chinese
text and text without any repetition (both random draws from the vocabulary: the worst case for word caches).
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402

REPO = pathlib.Path(__file__).resolve().parents[1]


def chunks(text, size=4000):
    return [text[i:i + size] for i in range(0, len(text), size)]


def files(*patterns):
    return "".join(p.read_text() for pattern in patterns for p in sorted(REPO.glob(pattern)))


def text_sets(hf):
    rng = random.Random(1)
    vocab = [hf.decode([i]) for i in range(hf.get_vocab_size())]
    words = [w for w in vocab if w and "\ufffd" not in w and "｜" not in w]
    cjk = [w for w in words if all("一" <= c <= "龥" for c in w)] or ["中"]
    sentences = ("".join(rng.choices(cjk, k=rng.randrange(4, 20))) + rng.choice("，。！？、") for _ in range(40000))
    chat = [json.loads(line) for line in (REPO / "tests/golden/eval.jsonl").read_text().splitlines()]
    return {
        "prose": chunks(files("*.md", "docs/**/*.md", "src/**/*.md", "models/**/*.md")),
        "code": chunks(files("src/**/*.cc", "src/**/*.h", "tools/**/*.py")),
        "chat": [c.get("prompt") or "\n".join(m["content"] or "" for m in c["messages"]) for c in chat],
        "chinese": chunks("".join(sentences)),
        "unrepeated": chunks("".join(rng.choices(words, k=300000))),
    }


def hf_mb_s(hf, texts, seconds):
    num_bytes = sum(len(t.encode()) for t in texts)
    rates, start = [], time.process_time()
    for t in texts:
        hf.encode(t, add_special_tokens=False)
    while len(rates) < 3 or time.process_time() - start < seconds:
        begin = time.process_time()
        for t in texts:
            hf.encode(t, add_special_tokens=False)
        rates.append(num_bytes / 1e6 / (time.process_time() - begin))
    return sorted(rates)[len(rates) // 2], sum(len(hf.encode(t, add_special_tokens=False).ids) for t in texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", required=True)
    parser.add_argument("--tokenizer", default=str(REPO / "models/tiny-v3/tokenizer.json"))
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    hf = Tokenizer.from_file(args.tokenizer)
    commit = subprocess.run(["git", "-C", REPO, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    for name, texts in text_sets(hf).items():
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as out:
            out.writelines(json.dumps(t) + "\n" for t in texts)
            out.flush()
            done = subprocess.run([args.bench, args.tokenizer, out.name, str(args.seconds)], capture_output=True, text=True,
                                  check=True)
        ours = json.loads(done.stdout)
        theirs, tokens = hf_mb_s(hf, texts, args.seconds)
        if tokens != ours["tokens"]:
            raise SystemExit(f"{name}: {ours['tokens']} tokens, {tokens} from tokenizers")
        print(json.dumps({"bench": "tokenizer", "texts": name, "bytes": ours["bytes"], "tokens": tokens,
                          "encode_mb_s": round(ours["encode_mb_s"]["median"], 1), "tokenizers_mb_s": round(theirs, 2),
                          "ratio": round(ours["encode_mb_s"]["median"] / theirs, 2),
                          "decode_mb_s": round(ours["decode_mb_s"]["median"], 1), "load_ms": round(ours["load_ms"], 1),
                          "threads": 1, "commit": commit.stdout.strip()}))


if __name__ == "__main__":
    main()
