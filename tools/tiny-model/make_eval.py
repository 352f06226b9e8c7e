"""600 held-out prompts, balanced over the tasks -> eval.jsonl"""

import json
import random
import sys
import collections
from gen import *

QUOTA = {
    "add": 42,
    "sub": 43,
    "compare": 26,
    "sort": 38,
    "reverse": 30,
    "count": 30,
    "lookup": 38,
    "json": 26,
    "passkey": 30,
    "passkey_long": 26,
    "date": 38,
    "memory": 30,
    "copy": 26,
    "paraphrase": 17,
    "glossary": 34,
    "capital": 5,
    "unknown": 7,
    "story_qa": 26,
    "story": 7,
    "system": 30,
    "tool_call": 17,
    "tool_answer": 13,
    "completion": 21,
}
r = random.Random(20250101)
n = collections.Counter()
seen = set()
out = []
while any(n[t] < q for t, q in QUOTA.items()):
    e = sample(r, "eval")
    t = e["task"]
    k = json.dumps([e.get("messages"), e.get("prompt")])
    if n[t] < QUOTA.get(t, 0) and k not in seen:
        if t == "passkey_long" and n[t] % 2 == 0 and len(e["messages"][-1]["content"]) < 6000:
            continue
        n[t] += 1
        seen.add(k)
        out.append({x: e[x] for x in ("task", "messages", "prompt", "tools", "answer", "check", "contains") if x in e})
out.sort(key=lambda e: e["task"])
with open(sys.argv[1] if len(sys.argv) > 1 else "eval.jsonl", "w", encoding="utf-8") as f:
    for i, e in enumerate(out):
        f.write(json.dumps({"id": i, **e}, ensure_ascii=False) + "\n")
assert len(out) == 600
print(len(out), n)
