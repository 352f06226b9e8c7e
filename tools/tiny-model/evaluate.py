"""HF float32 greedy on eval.jsonl (batched, left padding), MTP acceptance, expert load -> metrics.json"""

import json
import os
import sys
import time
import collections
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from hf_ref import load_hf
from refmtp import MTP

SRC = sys.argv[1]
N = int(sys.argv[2]) if len(sys.argv) > 2 else 10**9
tk = AutoTokenizer.from_pretrained(SRC)
raw = Tokenizer.from_file(os.path.join(SRC, "tokenizer.json"))


def enc(t):
    return raw.encode(t, add_special_tokens=False).ids


ev = [json.loads(l) for l in open(os.path.join(SRC, "eval.jsonl"))][:N]
hf, W, _ = load_hf(SRC, attn="sdpa")
mtp = MTP(hf, W)
hf.generation_config.do_sample = False
hf.generation_config.temperature = hf.generation_config.top_p = None
for e in ev:
    e["ids"] = (
        [0] + enc(e["prompt"])
        if "prompt" in e
        else enc(
            tk.apply_chat_template(e["messages"], tools=e.get("tools"), tokenize=False, add_generation_prompt=True)
        )
    )
order = sorted(range(len(ev)), key=lambda i: len(ev[i]["ids"]))
t0 = time.time()
while order:
    L = len(ev[order[0]]["ids"])
    b = [i for i in order[:32] if len(ev[i]["ids"]) <= max(L + 12, L * 1.1)]
    if L > 700:
        b = b[:2]
    order = order[len(b) :]
    mx = max(len(ev[i]["ids"]) for i in b)
    ids = torch.full((len(b), mx), 2)
    am = torch.zeros_like(ids)
    for k, i in enumerate(b):
        x = ev[i]["ids"]
        ids[k, mx - len(x) :] = torch.tensor(x)
        am[k, mx - len(x) :] = 1
    with torch.no_grad():
        o = hf.generate(
            input_ids=ids, attention_mask=am, max_new_tokens=150, do_sample=False, pad_token_id=2, eos_token_id=1
        )
    for k, i in enumerate(b):
        g = o[k, mx:].tolist()
        g = g[: g.index(1) + 1] if 1 in g else g
        ev[i]["gen"] = g
print(f"generated in {time.time()-t0:.0f}s", flush=True)
ok, tot = collections.Counter(), collections.Counter()
bad = []
for e in ev:
    x = raw.decode([t for t in e["gen"] if t != 1], skip_special_tokens=False)
    fin = e["gen"][-1] == 1
    g = fin and (x == e["answer"] if e["check"] == "exact" else all(c in x for c in e["contains"]))
    tot[e["task"]] += 1
    ok[e["task"]] += g
    if not g:
        bad.append({"id": e["id"], "task": e["task"], "want": e["answer"], "got": x})
load = torch.zeros(5, 32, dtype=torch.long)
dom = collections.defaultdict(lambda: torch.zeros(5, 32, dtype=torch.long))
cur = []
gates = [l.mlp.gate for l in hf.model.layers if hasattr(l.mlp, "gate")] + [mtp.layer.mlp.gate]
for k, g in enumerate(gates):
    g.register_forward_hook(lambda m, a, o, k=k: cur.append((k, torch.bincount(o[2].reshape(-1), minlength=32))))
acc = collections.defaultdict(lambda: [0, 0])
for e in ev:
    f = e["ids"] + e["gen"]
    cur.clear()
    n = len(e["ids"])
    with torch.no_grad():
        h = hf.model(input_ids=torch.tensor([f[:-1]])).last_hidden_state
    d = mtp(torch.tensor([f]), h)[0].argmax(-1).tolist()
    for k, c in cur:
        load[k] += c
        dom[e["task"]][k] += c
    for j in range(len(e["gen"]) - 1):
        acc[e["task"]][0] += d[n - 1 + j] == e["gen"][j + 1]
        acc[e["task"]][1] += 1
A = [sum(v[0] for v in acc.values()), sum(v[1] for v in acc.values())]
M = {
    "eval_n": len(ev),
    "accuracy": sum(ok.values()) / len(ev),
    "per_task": {t: [ok[t], tot[t]] for t in sorted(tot)},
    "mtp_acceptance": A[0] / max(1, A[1]),
    "mtp_drafts": A[1],
    "mtp_per_task": {t: round(v[0] / max(1, v[1]), 4) for t, v in sorted(acc.items())},
    "expert_load": {
        "layers": ["1", "2", "3", "4", "5 (MTP)"],
        "counts": load.tolist(),
        "max_over_mean": [round(float(l.max() / l.float().mean()), 3) for l in load],
        "per_task_max_over_mean": {
            t: [round(float(l.max() / l.float().mean()), 2) for l in v] for t, v in sorted(dom.items())
        },
    },
}
json.dump(M, open(os.path.join(SRC, "golden", "metrics.json"), "w"), indent=1)
json.dump(bad, open(os.environ.get("TINY_BAD", "bad.json"), "w"), indent=1, ensure_ascii=False)
print(json.dumps({k: v for k, v in M.items() if k != "expert_load"}, indent=1), M["expert_load"]["max_over_mean"])
print(f"total {time.time()-t0:.0f}s")
