"""How far Hugging Face's own bf16 run is from its float32 run: writes tests/golden/hf_bf16_kl.json.

    .deps/oracle/bin/python tools/oracle/bf16_kl.py        # after ./dev oracle has installed torch and transformers

KL(float32 || bf16) in nats of the next token, at every position whose float32 logits tests/golden/prompts.safetensors
has. Weights are the checkpoint's, dequantised and rounded to bf16; activations, residual stream and logits are bf16, as
in a plain `from_pretrained(dtype=torch.bfloat16)`. The bar for backends that compute in bf16 is a multiple of this.
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/tiny-model"))
sys.dont_write_bytecode = True
from hf_ref import load_hf  # noqa: E402


@torch.no_grad()
def main():
    golden = load_file(ROOT / "tests/golden/prompts.safetensors")
    model, _, _ = load_hf(str(ROOT / "models/tiny-v3"), dtype=torch.bfloat16, attn="sdpa")
    prompts, everything = {}, []
    for name in sorted({key.split(".")[0] for key in golden}):
        ids = golden[f"{name}.input_ids"].long()
        positions = golden[f"{name}.logit_positions"].long()
        logits = model(input_ids=ids[None], use_cache=False).logits[0, positions].double()
        want = golden[f"{name}.logits"].double().log_softmax(-1)
        kl = (want.exp() * (want - logits.log_softmax(-1))).sum(-1)
        prompts[name] = {"tokens": len(ids), "positions": len(positions), "mean_kl": kl.mean().item(), "max_kl": kl.max().item()}
        everything.append(kl)
        print(f"{name:16} {len(ids):5} tokens, {len(positions):4} positions: mean {kl.mean():.2e}, max {kl.max():.2e}", flush=True)
    kl = torch.cat(everything)
    result = {
        "what": "KL(HF float32 || HF bfloat16) of the next token in nats, at the positions of prompts.safetensors",
        "made_by": "tools/oracle/bf16_kl.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "positions": len(kl),
        "mean_kl": kl.mean().item(),
        "median_kl": kl.median().item(),
        "p99_kl": kl.quantile(0.99).item(),
        "max_kl": kl.max().item(),
        "prompts": prompts,
    }
    (ROOT / "tests/golden/hf_bf16_kl.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(kl)} positions: mean {kl.mean():.3e}, median {kl.median():.3e}, max {kl.max():.3e}")


main()
