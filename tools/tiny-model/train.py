"""Train the tiny model.  python train.py --seconds 520 --out OUT [--tokens 32768] [--device cuda]"""

import argparse
import collections
import json
import math
import multiprocessing as mp
import os
import queue
import random
import sys
import threading
import time
import numpy as np

LENS = [32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096]
HERE = os.path.dirname(os.path.abspath(__file__))


def worker(seed, tokens, q, maxlen):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer
    from gen import sample
    from data import encode_examples

    tok = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    r = random.Random(seed)
    b = {l: [] for l in LENS}
    try:
        while True:
            for ids, n in encode_examples(tok, [sample(r) for _ in range(64)]):
                if len(ids) > maxlen:
                    continue
                l = next(x for x in LENS if x >= len(ids))
                b[l].append((ids, n))
                if len(b[l]) == max(1, tokens // l):
                    a = np.full((len(b[l]), l), 2, np.int16)
                    m = np.zeros((len(b[l]), 2), np.int32)
                    for i, (x, p) in enumerate(b[l]):
                        a[i, : len(x)] = x
                        m[i] = (p, len(x))
                    b[l] = []
                    q.put((a, m))
    except (KeyboardInterrupt, BrokenPipeError):
        pass


def main():
    ap = argparse.ArgumentParser()
    A = ap.add_argument
    A("--seconds", type=float, default=520)
    A("--out", default="out")
    A("--tokens", type=int, default=36864)
    A("--device", default="cuda")
    A("--lr", type=float, default=2e-3)
    A("--workers", type=int, default=13)
    A("--eval", default=os.path.join(HERE, "eval.jsonl"))
    A("--ckpt", default="")
    A("--resume", default="")
    A("--maxlen", type=int, default=4096)
    A("--evalevery", type=float, default=75)
    A("--qat", type=float, default=0.85)
    A("--steps", type=int, default=10**9)
    A("--seed", type=int, default=1)
    A("--evaln", type=int, default=10**9)
    A("--init", default="")
    A("--muon", type=float, default=0.0)
    A("--mix", type=int, default=1)
    A("--hold", type=float, default=0.45)
    a = ap.parse_args()
    t00 = time.time()
    q = mp.Queue(64)
    ps = [
        mp.get_context("fork").Process(target=worker, args=(a.seed * 1000 + i, a.tokens, q, a.maxlen), daemon=True)
        for i in range(a.workers)
    ]
    for p in ps:
        p.start()
    import torch
    import torch.nn.functional as F
    from tokenizers import Tokenizer
    from model import Tiny, ce, CFG, _Switch, COMPILE
    from export import export, load
    from muon import Muon
    from data import encode_examples

    dev = a.device
    dt = torch.bfloat16 if dev == "cuda" else torch.float32
    torch.manual_seed(a.seed)
    m = Tiny().to(dev)
    tok = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    dec = [p for n, p in m.named_parameters() if p.ndim == 2 and n not in ("embed",)]
    nod = [p for n, p in m.named_parameters() if not (p.ndim == 2 and n not in ("embed",))]
    opt = torch.optim.AdamW(
        [{"params": dec, "weight_decay": 0.05}, {"params": nod, "weight_decay": 0.0}],
        lr=a.lr,
        betas=(0.9, 0.95),
        eps=1e-10,
        fused=(dev == "cuda"),
    )
    mu = None
    if a.init:
        load(m, a.init)
    if a.muon:
        hid = [
            (p, {"eg": "r", "eu": "r", "ed": "c"}.get(n.split(".")[-1]))
            for n, p in m.named_parameters()
            if (n.startswith("layers.") and p.ndim == 2 and not n.endswith(".gate")) or n == "eh"
        ]
        hs = {id(p) for p, _ in hid}
        rest = [p for p in m.parameters() if id(p) not in hs]
        opt = torch.optim.AdamW(
            [{"params": rest, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.95), eps=1e-10, fused=(dev == "cuda")
        )
        mu = Muon(hid, a.muon, CFG["experts"])
    if a.resume:
        s = torch.load(a.resume, map_location=dev)
        m.load_state_dict(s["m"], strict=False)
        opt.load_state_dict(s["o"])
    print(
        "params",
        sum(p.numel() for p in m.parameters()),
        "of which MTP",
        sum(
            p.numel()
            for n, p in m.named_parameters()
            if n.startswith("layers.5.") or n in ("enorm", "hnorm", "eh", "mnorm")
        ),
        flush=True,
    )
    ev = [json.loads(l) for l in open(a.eval)][: a.evaln]
    evx = encode_examples(tok, ev)
    groups = collections.defaultdict(list)
    for i, (x, p) in enumerate(evx):
        groups[next(l for l in LENS if l >= len(x))].append(i)
    loads = [torch.zeros(CFG["experts"], device=dev) for _ in m.layers if _.moe]
    moes = [l for l in m.layers if l.moe]

    @torch.no_grad()
    def evaluate(fq):
        was, _Switch.on = _Switch.on, False
        ok = collections.Counter()
        tot = collections.Counter()
        acc = [0, 0]
        for l, idx in groups.items():
            bs = max(1, a.tokens // l)
            for j in range(0, len(idx), bs):
                part = idx[j : j + bs]
                ids = torch.full((bs, l), 2, dtype=torch.long)
                for k, i in enumerate(part):
                    ids[k, : len(evx[i][0])] = torch.tensor(evx[i][0])
                ids = ids.to(dev)
                lg, l2, _ = m([ids], fq=fq, dt=dt)
                pr = lg.argmax(-1).view(bs, l).cpu()
                p2 = l2.argmax(-1).view(bs, l).cpu()
                ids = ids.cpu()
                for k, i in enumerate(part):
                    x, p = evx[i]
                    n = len(x)
                    t = ev[i]["task"]
                    tot[t] += 1
                    ok[t] += bool((pr[k, p - 1 : n - 1] == ids[k, p:n]).all())
                    acc[0] += int((p2[k, p - 1 : n - 2] == pr[k, p : n - 1]).sum())
                    acc[1] += n - 1 - p
        _Switch.on = was
        return (
            sum(ok.values()) / max(1, sum(tot.values())),
            {t: f"{ok[t]}/{tot[t]}" for t in sorted(tot)},
            acc[0] / max(1, acc[1]),
        )

    log = []
    losses = collections.deque(maxlen=100)
    mloss = collections.deque(maxlen=100)
    step = 0
    ntok = 0
    t0 = time.time()
    lastev = t0
    last = t0
    warm = 100 if a.resume or a.init else 300
    print(f"setup {t0 - t00:.1f}s", flush=True)
    tstart = None
    acc_l = torch.zeros(2, device=dev)
    nacc = 0
    _Switch.on = COMPILE
    tune = {}
    while True:
        if (
            COMPILE and not a.init and step in (60, 120, 180)
        ):  # time compiled against plain element-wise functions, keep the faster
            torch.cuda.synchronize()
            tune[step] = time.time()
            _Switch.on = step == 60 or (step == 180 and tune[120] - tune[60] < tune[180] - tune[120])
            if step == 120:
                _Switch.on = False
            if step == 180:
                print(
                    "s/step compiled",
                    (tune[120] - tune[60]) / 60,
                    "plain",
                    (tune[180] - tune[120]) / 60,
                    "->",
                    _Switch.on,
                    flush=True,
                )
        B, M = q.get()
        now = time.time()
        if tstart is None and step >= 3:
            tstart = now
        fr = 0.0 if tstart is None else (now - tstart) / (a.seconds - (tstart - t0))
        if fr >= 1 or step >= a.steps:
            break
        lr = a.lr * min(1.0, (step + 1) / warm) * (1.0 if fr < a.hold else max(0.01, (1 - fr) / (1 - a.hold)))
        for g in opt.param_groups:
            g["lr"] = lr
        if mu:
            mu.lr = a.muon * lr / a.lr
        fq = fr > a.qat
        batches = [(B, M)] + [q.get() for _ in range(a.mix - 1)]
        IDS, W1, W2, T1, T2, VA = [], [], [], [], [], []
        for B, M in batches:
            ids = torch.from_numpy(B.astype(np.int64)).to(dev, non_blocking=True)
            M = torch.from_numpy(M).to(dev)
            b, L = ids.shape
            pos = torch.arange(L, device=dev)[None]
            pl, n = M[:, :1], M[:, 1:]
            # weight of predicting token i (i >= 1): answer tokens 1, prompt tokens little
            w = torch.where(pos >= pl, 1.0, torch.clamp(0.5 * (n - pl) / pl.clamp(min=1), max=0.1)) * (pos < n)
            IDS.append(ids)
            W1.append(F.pad(w[:, 1:], (0, 1)).reshape(-1))
            W2.append(F.pad(w[:, 2:], (0, 2)).reshape(-1))
            T1.append(F.pad(ids[:, 1:], (0, 1), value=2).reshape(-1))
            T2.append(F.pad(ids[:, 2:], (0, 2), value=2).reshape(-1))
            VA.append((pos < n).reshape(-1, 1).float())
            ntok += b * L
        w1, w2 = torch.cat(W1), torch.cat(W2)
        z = w1.sum().clamp(min=500.0)
        z2 = w2.sum().clamp(min=500.0)
        lg, l2, masks = m(IDS, fq=fq, dt=dt)
        l1 = ce(lg, torch.cat(T1), w1) / z
        lm = ce(l2, torch.cat(T2), w2) / z2
        (l1 + 0.3 * lm).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        if mu:
            mu.step()
        m.zero_grad(set_to_none=True)
        with torch.no_grad():  # auxiliary-loss-free balancing: V3's sign rule
            valid = torch.cat(VA)
            u = 1e-3 if fr < 0.8 else 0.0
            for l, mk, ld in zip(moes, masks, loads):
                c = (mk * valid).sum(0)
                ld.mul_(0.99).add_(c / c.sum(), alpha=0.01)
                if u:
                    l.bias.add_(u * torch.sign(c.mean() - c))
            acc_l += torch.stack([l1.detach(), lm.detach()])
            nacc += 1
        step += 1
        if step % 100 == 0 or step <= 3:
            v = (acc_l / nacc).tolist()
            acc_l.zero_()
            nacc = 0
            if step % 500 == 0 or step <= 3 or now - last > 15:
                last = now
                r = dict(
                    step=step,
                    t=round(now - t0, 1),
                    loss=round(v[0], 4),
                    mtp=round(v[1], 4),
                    lr=round(lr, 6),
                    mtok=round(ntok / 1e6, 1),
                    q=q.qsize(),
                    fq=fq,
                    maxload=[round(float(x.max() * 32), 2) for x in loads],
                )
                log.append(r)
                print(json.dumps(r), flush=True)
            if not math.isfinite(v[0]):
                print("NaN")
                break
        if now - lastev > a.evalevery:
            lastev = now
            s, d, ac = evaluate(fq)
            r = dict(step=step, t=round(time.time() - t0, 1), eval=round(s, 4), mtp_acc=round(ac, 4), tasks=d)
            log.append(r)
            print(json.dumps(r), flush=True)
    for p in ps:
        p.terminate()
    s, d, ac = evaluate(True)
    r = dict(
        step=step,
        t=round(time.time() - t0, 1),
        final_eval_fp8=round(s, 4),
        mtp_acc=round(ac, 4),
        tasks=d,
        mtok=round(ntok / 1e6, 1),
    )
    log.append(r)
    print(json.dumps(r), flush=True)
    os.makedirs(a.out, exist_ok=True)
    print("bytes", export(m, a.out))
    json.dump(log, open(os.path.join(a.out, "train_log.json"), "w"), indent=0)
    if a.ckpt:
        torch.save({"m": m.state_dict(), "o": opt.state_dict()}, a.ckpt)
    print(f"total {time.time() - t00:.1f}s", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
