"""Own float32 reference of the MTP module (layout of DeepSeek-V3), on top of one HF decoder layer."""

import copy
import torch
import torch.nn.functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm


class MTP(torch.nn.Module):
    def __init__(s, hf, w):
        super().__init__()
        c = hf.config
        P = f"model.layers.{c.num_hidden_layers}."
        s.hf = [hf]
        s.layer = DeepseekV3DecoderLayer(c, c.num_hidden_layers - 1).float()
        H = c.hidden_size
        s.enorm, s.hnorm, s.norm = (DeepseekV3RMSNorm(H, c.rms_norm_eps) for _ in range(3))
        s.eh = w[P + "eh_proj.weight"].float()
        s.emb = w[P + "embed_tokens.weight"].float()
        s.head = w[P + "shared_head.head.weight"].float()
        for n, m in (("enorm", s.enorm), ("hnorm", s.hnorm), ("shared_head.norm", s.norm)):
            m.weight.data = w[P + n + ".weight"].float()
        sd = {}
        for k, v in s.layer.state_dict().items():
            if k == "mlp.experts.gate_up_proj":
                v = torch.stack(
                    [
                        torch.cat(
                            [w[P + f"mlp.experts.{e}.gate_proj.weight"], w[P + f"mlp.experts.{e}.up_proj.weight"]]
                        )
                        for e in range(c.n_routed_experts)
                    ]
                )
            elif k == "mlp.experts.down_proj":
                v = torch.stack([w[P + f"mlp.experts.{e}.down_proj.weight"] for e in range(c.n_routed_experts)])
            else:
                v = w[P + k]
            sd[k] = v.float()
        s.layer.load_state_dict(sd)
        s.eval()

    @torch.no_grad()
    def forward(s, ids, h):
        """ids [1, n+1], h [1, n, H]: hidden states of tokens 0..n-1 AFTER the model's final norm.
        Row i combines h_i with the embedding of token i+1 (rotary position i) and predicts token i+2."""
        n = h.shape[1]
        pos = torch.arange(n)[None]
        z = torch.cat([s.enorm(F.embedding(ids[:, 1 : n + 1], s.emb)), s.hnorm(h)], -1)
        x = F.linear(z, s.eh)
        pe = s.hf[0].model.rotary_emb(x, pos)
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        x = s.layer(x, attention_mask=mask, position_ids=pos, position_embeddings=pe)
        return F.linear(s.norm(x), s.head)
