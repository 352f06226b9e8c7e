"""Compact training implementation of the DeepSeek-V3 architecture (MLA, noaux_tc MoE, MTP).
Everything but the attention core works on flat [tokens, hidden] tensors; all experts are computed for all tokens and
masked by the routing weights, which is exact and fast enough at this size."""

import math
import os
import torch
import torch.nn as nn
import torch.nn.functional as F

CFG = dict(
    vocab=4096,
    hidden=256,
    layers=5,
    dense=1,
    inter=512,
    heads=8,
    q_lora=256,
    kv_lora=512,
    nope=128,
    rope=64,
    vdim=128,
    experts=32,
    topk=8,
    groups=8,
    topk_groups=4,
    scale=2.5,
    moe_inter=128,
    eps=1e-6,
    theta=10000.0,
    factor=4.0,
    orig=1024,
    beta_fast=32,
    beta_slow=1,
    max_pos=4096,
)
COMPILE = os.environ.get("TINY_COMPILE", "0") == "1"


class _Switch:
    on = False  # compiled versions of the small element-wise functions are used while this is set


def comp(f):
    if not COMPILE:
        return f
    torch._dynamo.config.recompile_limit = 64
    c = torch.compile(f, dynamic=False)
    return lambda *a: c(*a) if _Switch.on else f(*a)


def yarn_inv_freq(c=CFG):
    d, base = c["rope"], c["theta"]
    pf = base ** (torch.arange(0, d, 2, dtype=torch.float32) / d)

    def dim_of(rot):
        return d * math.log(c["orig"] / (rot * 2 * math.pi)) / (2 * math.log(base))

    lo, hi = max(math.floor(dim_of(c["beta_fast"])), 0), min(math.ceil(dim_of(c["beta_slow"])), d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float32) - lo) / max(hi - lo, 0.001)).clamp(0, 1)
    return (1 / (c["factor"] * pf)) * ramp + (1 / pf) * (1 - ramp)


MSCALE = 0.1 * math.log(CFG["factor"]) + 1.0
SOFTMAX_SCALE = (CFG["nope"] + CFG["rope"]) ** -0.5 * MSCALE * MSCALE


def quant_blocks(w):
    """float32 [r, c] -> (e4m3 [r, c], float32 scale_inv [ceil(r/128), ceil(c/128)])"""
    r, c = w.shape
    R, C = -(-r // 128), -(-c // 128)
    p = F.pad(w, (0, C * 128 - c, 0, R * 128 - r)).view(R, 128, C, 128)
    s = p.abs().amax((1, 3)).clamp_min(1e-12) / 448.0
    q = (p / s[:, None, :, None]).to(torch.float8_e4m3fn)
    return q.view(R * 128, C * 128)[:r, :c].contiguous(), s


def dequant_blocks(q, s):
    r, c = q.shape
    return q.float() * s.repeat_interleave(128, 0)[:r].repeat_interleave(128, 1)[:, :c]


def fake_quant(w):
    with torch.no_grad():
        d = dequant_blocks(*quant_blocks(w.detach().float())) - w
    return w + d


@comp
def rms(x, w):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CFG["eps"]) * w


@comp
def rope_qk(q, kpe, kvb, cos, sin):
    """q [N,h,192], kpe [N,64], kvb [N,h,256] -> q, k, v (v padded to 192)"""
    c = CFG
    qn, qr = q.split([c["nope"], c["rope"]], -1)
    kn, v = kvb.split([c["nope"], c["vdim"]], -1)

    def rot(x, co, si):
        a, b = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.cat([a * co - b * si, b * co + a * si], -1)

    qr = rot(qr, cos[:, None], sin[:, None]).to(q.dtype)
    kr = rot(kpe, cos, sin).to(q.dtype)[:, None].expand(-1, q.shape[1], -1)
    return torch.cat([qn, qr], -1), torch.cat([kn, kr], -1), F.pad(v, (0, c["nope"] + c["rope"] - c["vdim"]))


@comp
def route(x, wg, bias):
    c = CFG
    E = c["experts"]
    s = torch.sigmoid(F.linear(x.float(), wg))
    ch = (s + bias).detach()
    gs = ch.view(-1, c["groups"], E // c["groups"]).topk(2, -1)[0].sum(-1)
    gi = gs.topk(c["topk_groups"], -1)[1]
    gm = torch.zeros_like(gs).scatter_(1, gi, 1.0)
    ch = ch.masked_fill(gm.repeat_interleave(E // c["groups"], 1) == 0, float("-inf"))
    idx = ch.topk(c["topk"], -1)[1]
    m = torch.zeros_like(s).scatter_(1, idx, 1.0)
    w = s * m
    return w / (w.sum(-1, keepdim=True) + 1e-20) * c["scale"], m


@comp
def swiglu(g, u):
    return F.silu(g) * u


@comp
def swiglu_w(g, u, w):
    h = F.silu(g) * u
    return (h.view(h.shape[0], w.shape[1], -1) * w[:, :, None].to(h.dtype)).view(h.shape)


@comp
def ce(logits, tgt, wt):
    return (F.cross_entropy(logits.float(), tgt, reduction="none") * wt).sum()


class Layer(nn.Module):
    def __init__(s, moe):
        super().__init__()
        c = CFG
        H = c["hidden"]
        qk = c["nope"] + c["rope"]

        def P(o, i, g=1.0):
            return nn.Parameter(torch.randn(o, i) * (g / math.sqrt(i)))

        s.moe = moe
        out = 0.4
        s.ln1 = nn.Parameter(torch.ones(H))
        s.ln2 = nn.Parameter(torch.ones(H))
        s.qa = P(c["q_lora"], H)
        s.qan = nn.Parameter(torch.ones(c["q_lora"]))
        s.qb = P(c["heads"] * qk, c["q_lora"], 0.7)
        s.kva = P(c["kv_lora"] + c["rope"], H)
        s.kvan = nn.Parameter(torch.ones(c["kv_lora"]))
        s.kvb = P(c["heads"] * (c["nope"] + c["vdim"]), c["kv_lora"], 0.7)
        s.o = P(H, c["heads"] * c["vdim"], out)
        if moe:
            E, I = c["experts"], c["moe_inter"]
            s.gate = P(E, H, 0.5)
            s.register_buffer("bias", torch.zeros(E))
            s.eg = P(E * I, H)
            s.eu = P(E * I, H)
            s.ed = nn.Parameter(torch.randn(H, E * I) * (out / math.sqrt(I)))
            s.sg = P(I, H)
            s.su = P(I, H)
            s.sd = P(H, I, out)
        else:
            s.g = P(c["inter"], H)
            s.u = P(c["inter"], H)
            s.d = P(H, c["inter"], out)

    QUANT = ("qa", "qb", "kva", "kvb", "o", "eg", "eu", "ed", "sg", "su", "sd", "g", "u", "d")

    def forward(s, x, shapes, cos, sin, fq, dt):
        """x [N, H]: the tokens of several sub-batches of shapes [(B, L), ...] one after the other"""
        c = CFG
        N = x.shape[0]

        def W(n):
            return (fake_quant(getattr(s, n)) if fq and n in s.QUANT else getattr(s, n)).to(dt)

        h = rms(x, s.ln1).to(dt)
        q = F.linear(rms(F.linear(h, W("qa")), s.qan).to(dt), W("qb")).view(N, c["heads"], -1)
        kv = F.linear(h, W("kva"))
        kvb = F.linear(rms(kv[:, : c["kv_lora"]], s.kvan).to(dt), W("kvb")).view(N, c["heads"], -1)
        q, k, v = rope_qk(q, kv[:, c["kv_lora"] :], kvb, cos, sin)
        at = []
        for (B, L), Q, K, Vv in zip(shapes, *(t.split([B * L for B, L in shapes]) for t in (q, k, v))):

            def V(t):
                return t.view(B, L, c["heads"], -1).transpose(1, 2)

            at.append(
                F.scaled_dot_product_attention(V(Q), V(K), V(Vv), is_causal=True, scale=SOFTMAX_SCALE)
                .transpose(1, 2)[..., : c["vdim"]]
                .reshape(B * L, -1)
            )
        a = torch.cat(at) if len(at) > 1 else at[0]
        x = x + F.linear(a, W("o")).float()
        hf = rms(x, s.ln2)
        h = hf.to(dt)
        if not s.moe:
            return x + F.linear(swiglu(F.linear(h, W("g")), F.linear(h, W("u"))), W("d")).float(), None
        w, m = route(hf, s.gate, s.bias)
        y = F.linear(swiglu_w(F.linear(h, W("eg")), F.linear(h, W("eu")), w), W("ed"))
        y = y.float() + F.linear(swiglu(F.linear(h, W("sg")), F.linear(h, W("su"))), W("sd")).float()
        return x + y, m


class Tiny(nn.Module):
    def __init__(s):
        super().__init__()
        c = CFG
        H = c["hidden"]
        s.embed = nn.Parameter(torch.randn(c["vocab"], H) * 0.1)
        s.head = nn.Parameter(torch.randn(c["vocab"], H) * 0.03)
        s.norm = nn.Parameter(torch.ones(H))
        s.layers = nn.ModuleList(
            [Layer(i >= c["dense"]) for i in range(c["layers"])] + [Layer(True)]
        )  # the last one is the MTP block
        s.enorm = nn.Parameter(torch.ones(H))
        s.hnorm = nn.Parameter(torch.ones(H))
        s.eh = nn.Parameter(torch.randn(H, 2 * H) / math.sqrt(2 * H))
        s.mnorm = nn.Parameter(torch.ones(H))
        f = torch.arange(c["max_pos"], dtype=torch.float32)[:, None] * yarn_inv_freq()[None]
        s.register_buffer("cos", f.cos(), persistent=False)
        s.register_buffer("sin", f.sin(), persistent=False)

    def forward(s, ids, fq=False, dt=torch.bfloat16, mtp=True):
        """ids: one tensor [B, L] or a list of them -> main logits [N, V], MTP logits [N, V] (row i predicts token i+2), routing masks per MoE layer"""
        ids = ids if isinstance(ids, list) else [ids]
        sh = [tuple(t.shape) for t in ids]
        cos = torch.cat([s.cos[:L].repeat(B, 1) for B, L in sh])
        sin = torch.cat([s.sin[:L].repeat(B, 1) for B, L in sh])
        x = F.embedding(torch.cat([t.reshape(-1) for t in ids]), s.embed)
        masks = []
        for l in s.layers[:-1]:
            x, m = l(x, sh, cos, sin, fq, dt)
            if m is not None:
                masks.append(m)
        h = rms(x, s.norm)
        head = s.head.to(dt)
        logits = F.linear(h.to(dt), head)
        if not mtp:
            return logits, None, masks
        nxt = torch.cat([F.pad(t[:, 1:], (0, 1), value=2).reshape(-1) for t in ids])
        z = torch.cat([rms(F.embedding(nxt, s.embed), s.enorm), rms(h, s.hnorm)], -1)
        x2, m = s.layers[-1](F.linear(z.to(dt), s.eh.to(dt)).float(), sh, cos, sin, fq, dt)
        masks.append(m)
        return logits, F.linear(rms(x2, s.mnorm).to(dt), head), masks
