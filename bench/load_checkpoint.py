#!/usr/bin/env python3
"""How fast is an FP8 checkpoint loaded, beside what the machine can do?

  bench/load_checkpoint.py FOLDER [--manta BINARY] [--device cuda|cpu] [--layers N] [--experts N] [--scale N]

Writes a random checkpoint with DeepSeek-V3's dimensions and few layers into FOLDER (kept when it is there already), then
prints GB/s of
  read    the files read by as many threads, from the page cache, and from the disk where this process may empty the cache
  copy    one plain copy from page-locked memory to the GPU (needs torch; left out without)
  load    what `manta serve` says of its loading, from the page cache and from the disk
and the last in percent of the slower of the two above it.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "models/tiny-v3"
PIECE = 16 << 20
GB = 1e9


def config_of(layers, experts, scale):
    config = json.loads((TOKENIZER / "config.json").read_text())
    config |= {"hidden_size": 7168 // scale, "intermediate_size": 18432 // scale, "moe_intermediate_size": 2048 // scale,
               "num_hidden_layers": layers, "first_k_dense_replace": 1, "num_attention_heads": 128 // scale,
               "num_key_value_heads": 128 // scale, "n_routed_experts": experts, "n_group": 1, "topk_group": 1,
               "q_lora_rank": 1536 // scale, "num_nextn_predict_layers": 0}
    return config


def shapes_of(c):
    """Name and shape of every tensor; the FP8 ones are those with a scale."""
    hidden, heads, latent = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    linear, plain = {}, {"model.embed_tokens.weight": [c["vocab_size"], hidden], "model.norm.weight": [hidden],
                         "lm_head.weight": [c["vocab_size"], hidden]}

    def mlp(prefix, inner):
        linear.update({prefix + "gate_proj.weight": [inner, hidden], prefix + "up_proj.weight": [inner, hidden],
                       prefix + "down_proj.weight": [hidden, inner]})

    for i in range(c["num_hidden_layers"]):
        at, attention = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        plain.update({at + "input_layernorm.weight": [hidden], at + "post_attention_layernorm.weight": [hidden],
                      attention + "q_a_layernorm.weight": [c["q_lora_rank"]],
                      attention + "kv_a_layernorm.weight": [latent]})
        linear.update({attention + "q_a_proj.weight": [c["q_lora_rank"], hidden],
                       attention + "q_b_proj.weight": [heads * (nope + rope), c["q_lora_rank"]],
                       attention + "kv_a_proj_with_mqa.weight": [latent + rope, hidden],
                       attention + "kv_b_proj.weight": [heads * (nope + value), latent],
                       attention + "o_proj.weight": [hidden, heads * value]})
        if i < c["first_k_dense_replace"]:
            mlp(at + "mlp.", c["intermediate_size"])
            continue
        plain[at + "mlp.gate.weight"] = [c["n_routed_experts"], hidden]
        plain[at + "mlp.gate.e_score_correction_bias"] = [c["n_routed_experts"]]
        for expert in range(c["n_routed_experts"]):
            mlp(f"{at}mlp.experts.{expert}.", c["moe_intermediate_size"])
        mlp(at + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
    return linear, plain


def tensors_of(config):
    linear, plain = shapes_of(config)
    for name, shape in plain.items():
        bias = name.endswith("_bias")
        yield name, "F32" if bias else "BF16", shape, 4 if bias else 2
    for name, shape in linear.items():
        yield name, "F8_E4M3", shape, 1
        yield name + "_scale_inv", "F32", [-(-n // 128) for n in shape], 4


FP8 = bytes(code if code & 0x7F != 0x7F else code & 0xF0 for code in range(256))  # without the two codes of NaN
BF16 = bytes(byte & 0xBF for byte in range(256))  # in the high byte: below 2


def values(dtype, count, drawn):
    """Bytes without a NaN; one piece is drawn and repeated."""
    if dtype == "F32":
        return struct.pack("<f", 1e-4) * count
    size = count * (2 if dtype == "BF16" else 1)
    piece = drawn.translate(BF16 if dtype == "BF16" else FP8)
    return (piece * -(-size // len(piece)))[:size]


def write(folder, config, num_files=4):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = sorted(tensors_of(config))
    files = [[] for _ in range(num_files)]
    for i, tensor in enumerate(tensors):
        files[i * num_files // len(tensors)].append(tensor)
    drawn = random.Random(1).randbytes(PIECE)
    index = {}
    for number, file in enumerate(files):
        name, header, end = f"model-{number + 1:05}-of-{num_files:05}.safetensors", {}, 0
        for tensor, dtype, shape, size in file:
            begin, end = end, end + math.prod(shape) * size
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            index[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, dtype, shape, _ in file:
                out.write(values(dtype, math.prod(shape), drawn))
            out.flush()
            os.fsync(out.fileno())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file in TOKENIZER.iterdir():
        if file.is_file() and "safetensors" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))


def files_of(folder):
    return sorted(folder.glob("*.safetensors"))


def read_rate(folder):
    def read(job):
        path, begin, end = job
        buffer = bytearray(PIECE)
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while begin < end:
                begin += file.readinto(memoryview(buffer)[:min(PIECE, end - begin)])

    jobs, step = [], 8 * PIECE
    for path in files_of(folder):
        size = path.stat().st_size
        jobs += [(path, at, min(at + step, size)) for at in range(0, size, step)]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(read, jobs))
    return sum(p.stat().st_size for p in files_of(folder)) / GB / (time.monotonic() - begin)


def copy_rate():
    try:
        import torch
        host = torch.ones(1 << 30, dtype=torch.uint8).pin_memory()
        device = torch.empty_like(host, device="cuda")
    except (ImportError, RuntimeError):
        return None
    best = 0.0
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.monotonic()
        device.copy_(host)
        torch.cuda.synchronize()
        best = max(best, host.numel() / GB / (time.monotonic() - begin))
    return best


def load_rate(manta, folder, device):
    """Of its own words: loading weights 4.3 GiB in 0.9 s."""
    command = [manta, "serve", str(folder), "--host", "127.0.0.1", "--port", "0", "--device", device,
               "--max-model-len", "4096", "--max-num-seqs", "16"]
    log = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        found = None
        for line in process.stdout:
            log.append(line)
            found = re.search(r"loading weights ([0-9.]+) ([GM])iB in ([0-9.]+) s", line) or found
            if re.search(r"API\s+http", line):
                break
        process.send_signal(signal.SIGINT)
    if found is None:
        sys.exit("no word of loading:\n" + "".join(log[-20:]))
    return float(found[1]) * (2**30 if found[2] == "G" else 2**20) / GB / float(found[3])


def empty_cache(folder):
    """Whether the files' pages are gone."""
    os.sync()
    for path in files_of(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--manta", default=str(ROOT / "build/cuda/manta"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--scale", type=int, default=1, help="divide V3's widths, for a small machine")
    args = parser.parse_args()
    if not files_of(args.folder):
        write(args.folder, config_of(args.layers, args.experts, args.scale))
    print(f"{sum(p.stat().st_size for p in files_of(args.folder)) / GB:.2f} GB in {len(files_of(args.folder))} files")
    copy = copy_rate() if args.device == "cuda" else None
    if copy is not None:
        print(f"copy to the GPU, page-locked    {copy:6.2f} GB/s")
    for source in ("disk", "page cache"):
        if source == "disk" and not empty_cache(args.folder):
            continue
        read = read_rate(args.folder)
        if source == "disk":
            empty_cache(args.folder)
        load = load_rate(args.manta, args.folder, args.device)
        slower = min(read, copy) if copy is not None else read
        print(f"{source:10}  read {read:6.2f} GB/s, load {load:6.2f} GB/s: {100 * load / slower:.0f} %", flush=True)


if __name__ == "__main__":
    main()
