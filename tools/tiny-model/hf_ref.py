"""Load the FP8 checkpoint into Hugging Face's DeepseekV3ForCausalLM with dequantised weights (float32 by default)."""

import glob
import json
import os
import sys
import torch
import tempfile
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM


def dequant_dir(src, dst, dtype=torch.float32):
    """FP8 checkpoint -> plain checkpoint directory: w = q * scale_inv of its 128 x 128 block"""
    os.makedirs(dst, exist_ok=True)
    t = {}
    for f in sorted(glob.glob(os.path.join(src, "*.safetensors"))):
        t.update(load_file(f))
    out = {}
    for n, w in t.items():
        if n.endswith("_scale_inv"):
            continue
        if w.dtype == torch.float8_e4m3fn:
            s = t[n + "_scale_inv"]
            r, c = w.shape
            w = w.float() * s.repeat_interleave(128, 0)[:r].repeat_interleave(128, 1)[:, :c]
        out[n] = w.to(torch.float32 if n.endswith("e_score_correction_bias") else dtype).contiguous()
    save_file(out, os.path.join(dst, "model.safetensors"), metadata={"format": "pt"})
    c = json.load(open(os.path.join(src, "config.json")))
    c.pop("quantization_config")
    c["torch_dtype"] = str(dtype).split(".")[-1]
    json.dump(c, open(os.path.join(dst, "config.json"), "w"))
    return out


def load_hf(src, dtype=torch.float32, attn="eager", tmp=None):
    d = tmp or tempfile.mkdtemp()
    w = dequant_dir(src, d, dtype)
    DeepseekV3ForCausalLM._keys_to_ignore_on_load_unexpected = [
        r"model\.layers\.5\..*"
    ]  # HF's pattern names layer 61 of the full model
    m = DeepseekV3ForCausalLM.from_pretrained(d, dtype=dtype, attn_implementation=attn).eval()
    return m, w, d
