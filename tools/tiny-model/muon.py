"""Muon for the hidden matrices (momentum, then orthogonalised by Newton-Schulz steps), grouped by shape and batched.

Derived from Keller Jordan's Muon (Keller Jordan, Yuchen Jin, Vlado Boza, You Jiacheng, Franz Cesista, Laker Newhouse,
Jeremy Bernstein: "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/;
code https://github.com/KellerJordan/Muon, MIT License, Copyright (c) 2024 Keller Jordan). From there: the Newton-Schulz
iteration with its coefficients, Nesterov momentum 0.95 and five steps. The factor 0.2 * sqrt(max(rows, columns)), which gives
an update the RMS of AdamW's, and the decoupled weight decay are those of Liu et al., "Muon is Scalable for LLM Training",
arXiv:2502.16982. Ours: matrices of equal shape, stacked experts included, are orthogonalised in one batch.
"""

import torch
import collections


@torch.no_grad()
def newton_schulz(G, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.to(torch.bfloat16) if G.is_cuda else G.clone()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X.float()


class Muon:
    """items: list of (parameter, kind); kind 'r': experts stacked along rows, 'c': along columns, None: one matrix"""

    def __init__(s, items, lr, E, wd=0.05, mom=0.95):
        s.items, s.lr, s.E, s.wd, s.mom = items, lr, E, wd, mom
        s.buf = [torch.zeros_like(p) for p, _ in items]

    def split(s, t, k):
        r, c = t.shape
        return (
            t.view(s.E, r // s.E, c) if k == "r" else t.view(r, s.E, c // s.E).transpose(0, 1) if k == "c" else t[None]
        )

    def join(s, t, k, shape):
        return t.reshape(shape) if k != "c" else t.transpose(0, 1).reshape(shape)

    @torch.no_grad()
    def step(s):
        gr = collections.defaultdict(list)
        gs = [p.grad for p, _ in s.items]
        torch._foreach_mul_(s.buf, s.mom)
        torch._foreach_add_(s.buf, gs, alpha=1 - s.mom)
        up = torch._foreach_mul(s.buf, s.mom)
        torch._foreach_add_(up, gs, alpha=1 - s.mom)
        for i, (p, k) in enumerate(s.items):
            u = s.split(up[i], k)
            t = u.shape[-2] > u.shape[-1]
            u = u.mT if t else u
            gr[tuple(u.shape[1:])].append((i, k, t, u))
        for sh, l in gr.items():
            X = newton_schulz(torch.cat([u for *_, u in l])) * (0.2 * max(sh) ** 0.5)
            o = 0
            for i, k, t, u in l:
                x = X[o : o + u.shape[0]]
                o += u.shape[0]
                p = s.items[i][0]
                p.mul_(1 - s.lr * s.wd).add_(s.join(x.mT if t else x, k, p.shape), alpha=-s.lr)
