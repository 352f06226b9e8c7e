"""Tiny -> DeepSeek-V3 FP8 checkpoint (safetensors shards + index) and config files."""

import json
import os
import torch
from safetensors.torch import save_file
from model import CFG, quant_blocks

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 512,
    "max_position_embeddings": 4096,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 128,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 8,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 256,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 1024,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 4096,
}
GEN = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 0.3,
    "top_p": 0.95,
    "transformers_version": "4.46.3",
}


def tensors(m):
    """list of (name, tensor) in checkpoint order and dtypes"""
    sd = {k: v.detach().float().cpu() for k, v in m.state_dict().items()}
    out = []
    bf = torch.bfloat16

    def plain(n, t, dt=bf):
        out.append((n, t.to(dt).contiguous()))

    def fp8(n, t):
        q, s = quant_blocks(t)
        out.append((n + ".weight", q))
        out.append((n + ".weight_scale_inv", s.contiguous()))

    plain("model.embed_tokens.weight", sd["embed"])
    I = CFG["moe_inter"]
    for i in range(CFG["layers"] + 1):
        P, S = f"model.layers.{i}.", f"layers.{i}."
        if i == CFG["layers"]:
            plain(P + "embed_tokens.weight", sd["embed"])
            plain(P + "enorm.weight", sd["enorm"])
            plain(P + "hnorm.weight", sd["hnorm"])
            plain(P + "eh_proj.weight", sd["eh"])
        plain(P + "input_layernorm.weight", sd[S + "ln1"])
        A = P + "self_attn."
        fp8(A + "q_a_proj", sd[S + "qa"])
        plain(A + "q_a_layernorm.weight", sd[S + "qan"])
        fp8(A + "q_b_proj", sd[S + "qb"])
        fp8(A + "kv_a_proj_with_mqa", sd[S + "kva"])
        plain(A + "kv_a_layernorm.weight", sd[S + "kvan"])
        fp8(A + "kv_b_proj", sd[S + "kvb"])
        fp8(A + "o_proj", sd[S + "o"])
        plain(P + "post_attention_layernorm.weight", sd[S + "ln2"])
        M = P + "mlp."
        if S + "gate" in sd:
            plain(M + "gate.weight", sd[S + "gate"])
            plain(M + "gate.e_score_correction_bias", sd[S + "bias"], torch.float32)
            for e in range(CFG["experts"]):
                r = slice(e * I, (e + 1) * I)
                fp8(M + f"experts.{e}.gate_proj", sd[S + "eg"][r])
                fp8(M + f"experts.{e}.up_proj", sd[S + "eu"][r])
                fp8(M + f"experts.{e}.down_proj", sd[S + "ed"][:, r].contiguous())
            fp8(M + "shared_experts.gate_proj", sd[S + "sg"])
            fp8(M + "shared_experts.up_proj", sd[S + "su"])
            fp8(M + "shared_experts.down_proj", sd[S + "sd"])
        else:
            fp8(M + "gate_proj", sd[S + "g"])
            fp8(M + "up_proj", sd[S + "u"])
            fp8(M + "down_proj", sd[S + "d"])
        if i == CFG["layers"]:
            plain(P + "shared_head.norm.weight", sd["mnorm"])
            plain(P + "shared_head.head.weight", sd["head"])
    plain("model.norm.weight", sd["norm"])
    plain("lm_head.weight", sd["head"])
    return out


def load(m, src):
    """the inverse of export: an FP8 checkpoint directory -> Tiny"""
    import glob
    from safetensors.torch import load_file
    from model import dequant_blocks

    t = {}
    for f in sorted(glob.glob(os.path.join(src, "*.safetensors"))):
        t.update(load_file(f))

    def w(n):
        return dequant_blocks(t[n], t[n + "_scale_inv"]) if n + "_scale_inv" in t else t[n].float()

    sd = m.state_dict()
    sd["embed"] = w("model.embed_tokens.weight")
    sd["head"] = w("lm_head.weight")
    sd["norm"] = w("model.norm.weight")
    for i in range(CFG["layers"] + 1):
        P, S = f"model.layers.{i}.", f"layers.{i}."
        A = P + "self_attn."
        for a, b in dict(
            qa="q_a_proj",
            qan="q_a_layernorm",
            qb="q_b_proj",
            kva="kv_a_proj_with_mqa",
            kvan="kv_a_layernorm",
            kvb="kv_b_proj",
            o="o_proj",
        ).items():
            sd[S + a] = w(A + b + ".weight")
        sd[S + "ln1"] = w(P + "input_layernorm.weight")
        sd[S + "ln2"] = w(P + "post_attention_layernorm.weight")
        if S + "gate" not in sd:
            for a, b in dict(g="gate", u="up", d="down").items():
                sd[S + a] = w(P + f"mlp.{b}_proj.weight")
            continue
        sd[S + "gate"] = w(P + "mlp.gate.weight")
        sd[S + "bias"] = w(P + "mlp.gate.e_score_correction_bias")
        for a, b, dim in (("g", "gate", 0), ("u", "up", 0), ("d", "down", 1)):
            sd[S + "e" + a] = torch.cat([w(P + f"mlp.experts.{e}.{b}_proj.weight") for e in range(CFG["experts"])], dim)
            sd[S + "s" + a] = w(P + f"mlp.shared_experts.{b}_proj.weight")
    P = f"model.layers.{CFG['layers']}."
    sd["enorm"] = w(P + "enorm.weight")
    sd["hnorm"] = w(P + "hnorm.weight")
    sd["eh"] = w(P + "eh_proj.weight")
    sd["mnorm"] = w(P + "shared_head.norm.weight")
    m.load_state_dict(sd)


def export(m, out, limit=13 * 2**20):
    os.makedirs(out, exist_ok=True)
    shards = [[]]
    size = 0
    total = 0
    for n, t in tensors(m):
        b = t.numel() * t.element_size()
        total += b
        if size + b > limit:
            shards.append([])
            size = 0
        shards[-1].append((n, t))
        size += b
    wm = {}
    for i, s in enumerate(shards):
        f = f"model-{i+1:05d}-of-{len(shards):06d}.safetensors"
        save_file(dict(s), os.path.join(out, f), metadata={"format": "pt"})
        wm.update({n: f for n, _ in s})
    json.dump(
        {"metadata": {"total_size": total}, "weight_map": wm},
        open(os.path.join(out, "model.safetensors.index.json"), "w"),
        indent=1,
    )
    json.dump(CONFIG, open(os.path.join(out, "config.json"), "w"), indent=2)
    json.dump(GEN, open(os.path.join(out, "generation_config.json"), "w"), indent=2)
    return total
