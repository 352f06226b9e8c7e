"""HF transformers CPU generation speed: 128 in / 128 out, batch 1 and 16, float32 and bf16."""

import sys
import json
import time
import torch
from hf_ref import load_hf

SRC = sys.argv[1]
R = []
print("threads", torch.get_num_threads(), torch.__version__)
for dt in (torch.float32, torch.bfloat16):
    m, _, _ = load_hf(SRC, dtype=dt, attn="sdpa")
    m.generation_config.do_sample = False
    m.generation_config.temperature = m.generation_config.top_p = None
    for B in (1, 16):
        torch.manual_seed(0)
        ids = torch.randint(3, 4000, (B, 128))
        am = torch.ones_like(ids)

        def g(n):
            return m.generate(
                input_ids=ids, attention_mask=am, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=2
            )

        with torch.no_grad():
            g(4)
            best = None
            for _ in range(2):
                t = time.time()
                g(1)
                p = time.time() - t
                t = time.time()
                g(128)
                a = time.time() - t
                if best is None or a < best[1]:
                    best = (p, a)
        p, a = best
        R.append(
            dict(
                dtype=str(dt)[6:],
                batch=B,
                prefill_s=round(p, 3),
                total_s=round(a, 2),
                out_tok_s=round(B * 128 / a, 1),
                decode_tok_s=round(B * 127 / (a - p), 1),
                prefill_tok_s=round(B * 128 / p, 1),
            )
        )
        print(R[-1], flush=True)
json.dump(R, open(sys.argv[2], "w"), indent=1)
