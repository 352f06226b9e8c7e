"""Computes the golden values again with Hugging Face's DeepseekV3ForCausalLM (float32, CPU) and compares: ./dev oracle.

    check_golden.py [NAME...]     # the prompts to check; all 25 when left out

Answers one question: do tests/golden/ and models/tiny-v3/ still belong together? Logits must agree within 2e-3 (two
float32 implementations differ by up to 8e-4, tests/golden/README.md); greedy tokens and MTP drafts must be equal.
"""
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/tiny-model"))
sys.dont_write_bytecode = True
from hf_ref import load_hf  # noqa: E402
from refmtp import MTP  # noqa: E402

MAX_LOGIT_ERROR = 2e-3


@torch.no_grad()
def greedy(model, output, num_tokens):
    tokens = []
    for _ in range(num_tokens):
        tokens.append(int(output.logits[0, -1].argmax()))
        step = torch.tensor([tokens[-1:]])
        output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
    return tokens


@torch.no_grad()
def check(model, mtp, golden, name):
    """-> (largest logit error, equal greedy tokens, equal MTP drafts, number of them)"""
    ids = golden[f"{name}.input_ids"].tolist()
    want = golden[f"{name}.greedy_ids"].tolist()
    output = model(input_ids=torch.tensor([ids]), use_cache=True)
    logits = output.logits[0, golden[f"{name}.logit_positions"].long()]
    error = (logits - golden[f"{name}.logits"]).abs().max().item()
    tokens = greedy(model, output, len(want))
    text = torch.tensor([ids + want])
    hidden = model.model(input_ids=text[:, :-1]).last_hidden_state
    drafts = mtp(text, hidden)[0][len(ids) - 1 :].argmax(-1)
    equal_drafts = int((drafts == golden[f"{name}.mtp_draft_ids"]).sum())
    return error, sum(a == b for a, b in zip(tokens, want)), equal_drafts, len(want)


def main():
    golden = load_file(ROOT / "tests/golden/prompts.safetensors")
    names = sys.argv[1:] or sorted({key.split(".")[0] for key in golden})
    model, weights, _ = load_hf(str(ROOT / "models/tiny-v3"))
    mtp = MTP(model, weights)
    failed = 0
    print(f"{'prompt':14} {'tokens':>6} {'logit error':>12} {'greedy':>7} {'drafts':>7} {'s':>6}")
    for name in names:
        start = time.monotonic()
        error, equal, drafts, total = check(model, mtp, golden, name)
        good = error <= MAX_LOGIT_ERROR and equal == total and drafts == total
        failed += not good
        line = f"{name:14} {len(golden[name + '.input_ids']):6} {error:12.2e} {equal:4}/{total} {drafts:4}/{total}"
        print(f"{line} {time.monotonic() - start:6.1f}" + ("" if good else "  DIFFERS"), flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
