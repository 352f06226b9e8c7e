"""The best order of a step in two microbatches, for given times: tries all cyclic orders of both microbatches' stages in
one MoE layer, repeated many times, and says what share of the transport's latency d each hides (src/model/overlap.cc
has the one that is used).

    bench/dbo_orders.py PROJECT ATTEND SHARED EXPERTS

Times of one microbatch in one layer: projections (with combine received and merge), attention (with route and dispatch
sent), shared expert, experts. Attention may be cut between projections and the rest, as DeepSeek's decoding does.
"""

import itertools
import sys

PROJECT, ATTEND, SHARED, EXPERTS = "PASE"
USED = "P0 A0 P1 A1 E0 S0 S1 E1"
LAYERS = 60


def hidden(order, took, d):
    now, arrives, at_layer = 0.0, {}, []
    for _ in range(LAYERS):
        for stage, microbatch in order:
            if stage in (EXPERTS, PROJECT):
                now = max(now, arrives.get(microbatch, 0.0))
            now += took[stage]
            if stage in (ATTEND, EXPERTS):
                arrives[microbatch] = now + d
        at_layer.append(now)
    half = LAYERS // 2
    period = (at_layer[-1] - at_layer[half - 1]) / (LAYERS - half)
    return 1 - (period - 2 * sum(took.values())) / (2 * d)


def is_possible(order):
    for microbatch in "01":
        stages = "".join(stage for stage, of in order if of == microbatch)
        first = stages.index(PROJECT)
        if stages[first:] + stages[:first] not in ("PASE", "PAES"):
            return False
    return True


def main():
    took = dict(zip("PASE", map(float, sys.argv[1:])))
    layer = sum(took.values())
    calls = [(stage, microbatch) for microbatch in "01" for stage in "PASE"]
    orders = [order for rest in itertools.permutations(calls[1:]) if is_possible(order := (calls[0], *rest))]
    used = [tuple(call) for call in USED.split()]
    for part in (1 / 8, 1 / 4, 3 / 8, 1 / 2):
        best = max(orders, key=lambda order: hidden(order, took, part * layer))
        print(f"d = {part:5.3f} of a microbatch's layer ({part * layer:.3g}): {100 * hidden(used, took, part * layer):3.0f} % "
              f"hidden, {100 * hidden(best, took, part * layer):3.0f} % by the best of {len(orders)} orders: "
              + " ".join(stage + microbatch for stage, microbatch in best))


main()
