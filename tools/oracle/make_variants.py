"""Writes tests/golden/variants/: tiny checkpoints with random weights, one per branch of the model's code that
models/tiny-v3 does not take, and the float32 logits that Hugging Face computes from them.

    .deps/oracle/bin/python tools/oracle/make_variants.py [NAME...]     # all of them when left out

NAME/config.json, model.safetensors (or two shards and their index), golden.safetensors: input_ids [n], logits [n, V]
and, where there is an MTP module, mtp_logits [n - 1, V] (row i predicts token i + 2); bf16_kl [1] is the mean KL
divergence of Hugging Face's own bf16 run from its float32 run. A seed is only taken when no routing decision in it is
close, so that neither rounding nor bf16 chooses other experts.
"""
import json
import pathlib
import shutil
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/variants"
sys.path.insert(0, str(ROOT / "tools/tiny-model"))
sys.dont_write_bytecode = True
from refmtp import MTP  # noqa: E402

NUM_TOKENS = 40
# Of a router's choice, in units of its scores: those of a softmax over eight experts are smaller.
MIN_MARGIN = {"sigmoid": 6e-3, "softmax": 2e-3}

BASE = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False, "bos_token_id": 0,
    "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80,
    "kv_lora_rank": 32, "max_position_embeddings": 128, "moe_intermediate_size": 16, "moe_layer_freq": 1, "n_group": 4,
    "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 2,
    "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 2, "num_nextn_predict_layers": 0,
    "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 32},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 2, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 16, "vocab_size": 96,
}
V2 = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "scoring_func": "softmax",
    "norm_topk_prob": False, "aux_loss_alpha": 0.001, "seq_aux": True,
    "rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
                     "mscale_all_dim": 0.707, "original_max_position_embeddings": 32},
}
FP8 = {"quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                               "weight_block_size": [128, 128]}}

# name -> (changes to BASE, how linear layers are stored, shards)
VARIANTS = {
    "mtp_bf16": ({"num_nextn_predict_layers": 1, "num_hidden_layers": 2}, "bf16", 2),
    "no_q_lora": ({"q_lora_rank": None}, "bf16", 1),
    "no_groups": ({"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 2}, "bf16", 1),
    "v2_lite": ({**V2, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
                 "routed_scaling_factor": 1.0, "n_shared_experts": 2}, "bf16", 1),
    "v2_groups": ({**V2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}, "bf16", 1),
    "head_sizes": ({"num_attention_heads": 3, "num_key_value_heads": 3, "qk_nope_head_dim": 24, "qk_rope_head_dim": 10,
                    "v_head_dim": 20, "kv_lora_rank": 40, "q_lora_rank": 36}, "bf16", 1),
    # Dimensions beside the 128 x 128 blocks; an MTP module stored in FP8.
    "fp8": ({**FP8, "hidden_size": 136, "num_hidden_layers": 2, "intermediate_size": 132, "n_routed_experts": 6, "n_group": 3,
             "kv_lora_rank": 132, "num_nextn_predict_layers": 1, "vocab_size": 64}, "fp8", 1),
    "no_yarn_tied_f32": ({"rope_scaling": None, "rope_theta": 50000, "tie_word_embeddings": True,
                          "first_k_dense_replace": 0, "num_hidden_layers": 2, "torch_dtype": "float32"}, "f32", 1),
    "other_yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 8, "beta_fast": 8, "beta_slow": 2, "mscale": 1.2,
                                     "mscale_all_dim": 0.8, "original_max_position_embeddings": 16},
                    "rope_theta": 500}, "bf16", 1),
    "dense": ({"n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None, "n_group": None,
               "topk_group": None, "moe_intermediate_size": None, "first_k_dense_replace": 3}, "bf16", 1),
}


def quantize(w):
    """float32 matrix -> e4m3 values and a float32 scale per 128 x 128 block (w = q * scale)"""
    rows, cols = w.shape
    grid = torch.zeros(-(-rows // 128) * 128, -(-cols // 128) * 128)
    grid[:rows, :cols] = w
    blocks = grid.view(grid.shape[0] // 128, 128, grid.shape[1] // 128, 128)
    scale = blocks.abs().amax(dim=(1, 3)) / 448.0
    q = (blocks / scale[:, None, :, None]).view_as(grid)[:rows, :cols].to(torch.float8_e4m3fn)
    return q.contiguous(), scale.contiguous()


def dequantize(q, scale):
    rows, cols = q.shape
    return q.float() * scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]


def tensor_shapes(c):
    """-> {name: shape}, the names of DeepSeek's checkpoints"""
    D, H, q, kv = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    mtp = c["num_nextn_predict_layers"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], D), "model.norm.weight": (D,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], D)

    def mlp(prefix, width):
        shapes.update({f"{prefix}gate_proj.weight": (width, D), f"{prefix}up_proj.weight": (width, D),
                       f"{prefix}down_proj.weight": (D, width)})

    for i in range(c["num_hidden_layers"] + mtp):
        p, a = f"model.layers.{i}.", f"model.layers.{i}.self_attn."
        if i == c["num_hidden_layers"]:
            shapes.update({f"{p}enorm.weight": (D,), f"{p}hnorm.weight": (D,), f"{p}eh_proj.weight": (D, 2 * D),
                           f"{p}shared_head.norm.weight": (D,)})
        shapes.update({f"{p}input_layernorm.weight": (D,), f"{p}post_attention_layernorm.weight": (D,),
                       f"{a}kv_a_proj_with_mqa.weight": (kv + rope, D), f"{a}kv_a_layernorm.weight": (kv,),
                       f"{a}kv_b_proj.weight": (H * (nope + v), kv), f"{a}o_proj.weight": (D, H * v)})
        if q:
            shapes.update({f"{a}q_a_proj.weight": (q, D), f"{a}q_a_layernorm.weight": (q,),
                           f"{a}q_b_proj.weight": (H * (nope + rope), q)})
        else:
            shapes[f"{a}q_proj.weight"] = (H * (nope + rope), D)
        if i < c["first_k_dense_replace"]:
            mlp(f"{p}mlp.", c["intermediate_size"])
            continue
        shapes[f"{p}mlp.gate.weight"] = (c["n_routed_experts"], D)
        if c["topk_method"] == "noaux_tc":
            shapes[f"{p}mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
        for e in range(c["n_routed_experts"]):
            mlp(f"{p}mlp.experts.{e}.", c["moe_intermediate_size"])
        mlp(f"{p}mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
    return shapes


def make_tensors(c, storage, generator):
    """-> (stored tensors, the float32 values they stand for)"""
    stored, exact = {}, {}
    for name, shape in sorted(tensor_shapes(c).items()):
        w = torch.randn(shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            stored[name] = exact[name] = w * 0.1
            continue
        if len(shape) == 1:
            w = 1.0 + 0.2 * w
        elif "embed_tokens" not in name or c["tie_word_embeddings"]:
            w = w * (1.5 / shape[1] ** 0.5)
        plain = any(part in name for part in ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj"))
        if storage == "fp8" and not plain:
            q, scale = quantize(w)
            stored[name], stored[f"{name}_scale_inv"] = q, scale
            exact[name] = dequantize(q, scale)
        else:
            stored[name] = w.contiguous() if storage == "f32" else w.to(torch.bfloat16)
            exact[name] = stored[name].float()
    if c["num_nextn_predict_layers"]:
        p = f"model.layers.{c['num_hidden_layers']}."
        for copy, original in ((f"{p}embed_tokens.weight", "model.embed_tokens.weight"),
                               (f"{p}shared_head.head.weight", "lm_head.weight")):
            stored[copy], exact[copy] = stored[original].clone(), exact[original].clone()
    return stored, exact


def load_hf(c, exact):
    cls = DeepseekV2ForCausalLM if c["model_type"] == "deepseek_v2" else DeepseekV3ForCausalLM
    plain = {k: v for k, v in c.items() if k not in ("quantization_config", "torch_dtype") and v is not None}
    if c["q_lora_rank"] is None:
        plain["q_lora_rank"] = None
    if c["n_routed_experts"] is None:  # Hugging Face builds no experts in dense layers and ignores these
        plain.update({"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1})
    with tempfile.TemporaryDirectory() as folder:
        main = {k: v for k, v in exact.items() if not k.startswith(f"model.layers.{c['num_hidden_layers']}.")}
        save_file(main, f"{folder}/model.safetensors", metadata={"format": "pt"})
        json.dump(plain, open(f"{folder}/config.json", "w"))
        model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                          output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"Hugging Face does not take the checkpoint: {info}")
    return model.eval()


def routing_margin(c, gate_logits, bias):
    """The least distance between a chosen expert (or group) and one left out, over all tokens of one layer."""
    scores = gate_logits.softmax(-1) if c["scoring_func"] == "softmax" else gate_logits.sigmoid() + bias
    margin, k = 9.0, c["num_experts_per_tok"]
    if c["topk_method"] != "greedy" and c["n_group"] > 1:
        grouped = scores.view(scores.shape[0], c["n_group"], -1)
        best = grouped.topk(2, -1).values.sum(-1) if c["topk_method"] == "noaux_tc" else grouped.amax(-1)
        order = best.sort(-1, descending=True).values
        margin = min(margin, (order[:, c["topk_group"] - 1] - order[:, c["topk_group"]]).min().item())
        kept = best >= order[:, c["topk_group"] - 1 : c["topk_group"]]
        scores = grouped.masked_fill(~kept[:, :, None], float("-inf")).flatten(1)
    order = scores.sort(-1, descending=True).values
    return min(margin, (order[:, k - 1] - order[:, k]).min().item())


@torch.no_grad()
def run_hf(c, exact, ids):
    """-> (golden tensors, smallest routing margin)"""
    model = load_hf(c, exact)
    hooks, margin = [], [9.0]

    def watch(layer, gate):
        name = f"model.layers.{layer}.mlp.gate."
        bias = exact.get(f"{name}e_score_correction_bias", 0.0)

        def hook(_, args, __):
            logits = args[0].reshape(-1, c["hidden_size"]) @ exact[f"{name}weight"].T
            margin[0] = min(margin[0], routing_margin(c, logits, bias))

        hooks.append(gate.register_forward_hook(hook))

    for i, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            watch(i, layer.mlp.gate)
    inputs = torch.tensor([ids])
    golden = {"input_ids": inputs[0].int(), "logits": model(input_ids=inputs).logits[0].clone()}
    if c["num_nextn_predict_layers"]:
        module = MTP(model, exact)
        watch(c["num_hidden_layers"], module.layer.mlp.gate)
        hidden = model.model(input_ids=inputs).last_hidden_state
        golden["mtp_logits"] = module(inputs, hidden[:, :-1])[0].clone()
    for hook in hooks:
        hook.remove()
    exact_log = golden["logits"].log_softmax(-1)
    bf16_log = model.to(torch.bfloat16)(input_ids=inputs).logits[0].float().log_softmax(-1)
    golden["bf16_kl"] = (exact_log.exp() * (exact_log - bf16_log)).sum(-1).mean().reshape(1)
    return golden, margin[0]


def write(folder, c, stored, golden, shards):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {k: v for k, v in c.items() if v is not None or k in ("q_lora_rank", "rope_scaling")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(golden, folder / "golden.safetensors")
    if shards == 1:
        return save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    names, files = sorted(stored), {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: stored[n] for n in part}, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in stored.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or VARIANTS:
        changes, storage, shards = VARIANTS[name]
        c = {**BASE, **changes}
        for seed in range(1000):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(2, c["vocab_size"], (NUM_TOKENS,), generator=generator).tolist()
            stored, exact = make_tensors(c, storage, generator)
            golden, margin = run_hf(c, exact, ids)
            if margin >= MIN_MARGIN[c["scoring_func"]]:
                break
        else:
            raise SystemExit(f"{name}: no seed without a close routing decision")
        write(OUT / name, c, stored, golden, shards)
        size = sum(f.stat().st_size for f in (OUT / name).iterdir())
        span = golden["logits"].max() - golden["logits"].min()
        print(f"{name:18} seed {seed:3}  routing margin {margin:.1e}  logits over {span:5.1f}  "
              f"bf16 KL {golden['bf16_kl'].item():.1e}  {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
