"""Rendering and tokenization of generator examples (the same chat template that ships with the model)."""

import os
import jinja2
import json
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
BOS_ID, EOS_ID = 0, 1


def make_env():
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    return env.from_string(open(os.path.join(HERE, "chat_template.jinja"), encoding="utf-8").read())


_T = None


def render(e):
    global _T
    if _T is None:
        _T = make_env()
    if "messages" in e:
        return _T.render(
            messages=e["messages"], tools=e.get("tools"), bos_token=BOS, eos_token=EOS, add_generation_prompt=True
        )
    return BOS + e["prompt"]


def encode_examples(tok, exs):
    """-> list of (ids, number of prompt tokens)"""
    p = tok.encode_batch([render(e) for e in exs], add_special_tokens=False)
    a = tok.encode_batch([e["answer"] for e in exs], add_special_tokens=False)
    return [(x.ids + y.ids + [EOS_ID], len(x.ids)) for x, y in zip(p, a)]
