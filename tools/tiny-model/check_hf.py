"""Our training model against HF's DeepseekV3ForCausalLM and HF's own MTP model, float32, same dequantised weights."""

import sys
import torch
from hf_ref import load_hf
from model import Tiny
from export import load
from refmtp import MTP

src = sys.argv[1]
hf, w, d = load_hf(src)
m = Tiny()
load(m, src)
m.eval()
ref = MTP(hf, w)
torch.manual_seed(0)
for L in (7, 300, 1500):
    ids = torch.randint(3, 4000, (1, L))
    with torch.no_grad():
        a = hf(ids, output_hidden_states=True)
        b, b2, _ = m(ids, dt=torch.float32)
        c2 = ref(ids, a.hidden_states[-1][:, :-1])[0]
    print(
        L,
        "logits: max |HF - training model|",
        (a.logits[0] - b).abs().max().item(),
        "of",
        b.abs().max().item(),
        "| MTP: max |refmtp - training model|",
        (c2 - b2[: L - 1]).abs().max().item(),
    )
from transformers.modeling_layers import MtpModel
from transformers.cache_utils import MtpCache

mtp = MtpModel.from_pretrained(hf)
c = MtpCache(config=hf.config.get_mtp_config())
with torch.no_grad():
    r = mtp(
        input_ids=ids[:, 1:],
        last_hidden_states=a.hidden_states[-1][:, :-1],
        attention_mask=torch.ones(1, L - 1, dtype=torch.long),
        position_ids=torch.arange(1, L)[None],
        mtp_cache=c,
    )
print("MTP draft logits: max |HF MtpModel - refmtp|", (r[1][0, 0] - c2[-1]).abs().max().item())
