"""golden/: reference values from Hugging Face's DeepseekV3ForCausalLM, float32, CPU, dequantised weights."""

import json
import os
import random
import sys
import collections
import time
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from gen import *
from gen import held
from hf_ref import load_hf
from refmtp import MTP

SRC, FAST = sys.argv[1], len(sys.argv) > 2 and sys.argv[2] == "fast"
G = os.path.join(SRC, "golden")
os.makedirs(G, exist_ok=True)
tk = AutoTokenizer.from_pretrained(SRC)
raw = Tokenizer.from_file(os.path.join(SRC, "tokenizer.json"))


def enc(t):
    return raw.encode(t, add_special_tokens=False).ids


def chat_ids(messages, tools=None):
    t = tk.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    return enc(t)


def U(t):
    return [{"role": "user", "content": t}]


hf, W, _ = load_hf(SRC)
mtp = MTP(hf, W)
r = random.Random(99)


# ---------- prompts ----------
def pk(words, seed):
    q = random.Random(seed)
    return passkey(q, words, words + 5)["messages"]


P = [
    ("bos", [0]),
    ("two", [0, 100]),
    ("raw_once", [0] + enc("Once upon a time, Mia lived near the forest.")),
    ("raw_seq", [0] + enc("3, 6, 9, 12,")),
    ("raw_code", [0] + enc("def main(args):\n    for i in range(len(args)):\n        print(i, args[i])\n")),
    ("raw_cjk", [0] + enc("大语言模型可以回答问题。こんにちは、世界。 😀🎉 안녕하세요")),
    ("random64", [0] + [r.randrange(3, 4064) for _ in range(63)]),
    ("repeat", [0] + [777] * 40),
    ("glossary_ep", chat_ids(U("What is expert parallelism?"))),
    ("glossary_kv", chat_ids(U("Explain the KV cache."))),
    ("hello", chat_ids(U("Hello!"))),
    ("add", chat_ids(U("What is 347 + 589?"))),
    ("sort", chat_ids(U("Sort these words alphabetically: " + ", ".join(random.Random(3).sample(SORTW, 4))))),
    (
        "system_upper",
        chat_ids([{"role": "system", "content": "Answer in capital letters."}] + U("What is the capital of France?")),
    ),
    (
        "multi_turn",
        chat_ids(
            U("My name is Nora. I live in Oslo.")
            + [{"role": "assistant", "content": "Nice to meet you, Nora!"}]
            + U("What is 12 + 30?")
            + [{"role": "assistant", "content": "12 + 30 = 42"}]
            + U("Where do I live?")
        ),
    ),
    ("tool", chat_ids(U("What is the weather in Lima?"), [tool_spec(TOOLS[0]), tool_spec(TOOLS[2])])),
    ("lookup", chat_ids(lookup(random.Random(5))["messages"])),
    ("story", chat_ids(U("Tell me a story about Mia and a fox."))),
]
for n, w in (
    ("pass_150", 110),
    ("pass_500", 400),
    ("pass_1000", 800),
    ("pass_1100", 900),
    ("pass_1500", 1230),
    ("pass_2000", 1640),
    ("pass_3000", 2480),
):
    P.append((n, chat_ids(pk(w, len(n) + w))))


def min_gap(ids, n=48):
    kv, x, g = None, torch.tensor([ids]), 9e9
    with torch.no_grad():
        for _ in range(n):
            o = hf(input_ids=x, past_key_values=kv, use_cache=True)
            kv = o.past_key_values
            v, i = o.logits[0, -1].topk(2)
            g = min(g, float(v[0] - v[1]))
            x = i[:1][None]
    return g


P = [
    (
        n,
        (
            max(([0] + [t] * 40 for t in (500, 777, 901, 1234, 1500, 2000, 2600, 3000)), key=min_gap)
            if n == "repeat"
            else i
        ),
    )
    for n, i in P
]  # avoid near ties in greedy decoding
if FAST:
    P = P[:4] + P[8:10] + P[-4:-3]
NEW = 48
T = {}
meta = []
DETAIL = ["glossary_ep", "multi_turn", "raw_cjk"]
MTPD = ["glossary_ep", "multi_turn", "pass_500"]
cap = {}


def hook(name):
    def f(mod, a, out):
        cap.setdefault(name, []).append(out)

    return f


@torch.no_grad()
def last_hidden(ids):
    return hf.model(input_ids=torch.tensor([ids])).last_hidden_state


for name, ids in P:
    t0 = time.time()
    n = len(ids)
    pos = sorted({0, n // 4, n // 2, n - 1})
    hs = []
    if name in DETAIL:
        hs = (
            [hf.model.embed_tokens.register_forward_hook(hook("h"))]
            + [l.register_forward_hook(hook("h")) for l in hf.model.layers]
            + [hf.model.norm.register_forward_hook(hook("h"))]
            + [l.mlp.gate.register_forward_hook(hook("g")) for l in hf.model.layers if hasattr(l.mlp, "gate")]
        )
    with torch.no_grad():
        o = hf(input_ids=torch.tensor([ids]), use_cache=True)
    for h in hs:
        h.remove()
    T[name + ".input_ids"] = torch.tensor(ids, dtype=torch.int32)
    T[name + ".logit_positions"] = torch.tensor(pos, dtype=torch.int32)
    T[name + ".logits"] = o.logits[0, pos].clone()
    if hs:
        T2 = {
            "hidden": torch.stack([(x[0] if isinstance(x, tuple) else x)[0] for x in cap["h"]])
            .reshape(-1, n, 256)
            .clone()
        }
        ids8, w8 = [], []
        for lg, w, ix in cap["g"]:
            ix, srt = ix.sort(-1)
            ids8.append(ix.int())
            w8.append(w.gather(1, srt))
        T2["expert_ids"] = torch.stack(ids8)
        T2["expert_weights"] = torch.stack(w8)
        T2["router_logits"] = torch.stack([g[0] for g in cap["g"]])
        cap.clear()
        T2["input_ids"] = torch.tensor(ids, dtype=torch.int32)
        save_file({k: v.contiguous() for k, v in T2.items()}, os.path.join(G, f"detail_{name}.safetensors"))
    kv, lg, out, ti, tl = o.past_key_values, o.logits[0, -1], [], [], []
    with torch.no_grad():
        for _ in range(NEW):
            lp = F.log_softmax(lg, -1)
            v, i = lp.topk(20)
            ti.append(i.int())
            tl.append(v)
            out.append(int(lg.argmax()))
            o = hf(input_ids=torch.tensor([[out[-1]]]), past_key_values=kv, use_cache=True)
            kv, lg = o.past_key_values, o.logits[0, -1]
    T[name + ".greedy_ids"] = torch.tensor(out, dtype=torch.int32)
    T[name + ".top20_ids"] = torch.stack(ti)
    T[name + ".top20_logprobs"] = torch.stack(tl)
    full = ids + out
    h = last_hidden(full[:-1])
    ml = mtp(torch.tensor([full]), h)[0]  # row i predicts token i+2
    T[name + ".mtp_draft_ids"] = (
        ml[n - 1 :].argmax(-1).int()
    )  # draft j: guess for greedy token j+1 after seeing greedy token j
    if name in MTPD:
        mp = sorted({0, n // 2, n - 2 if n > 1 else 0, n - 1, n + 7})
        T[name + ".mtp_positions"] = torch.tensor(mp, dtype=torch.int32)
        T[name + ".mtp_logits"] = ml[mp].clone()
    gap = min(float(x[0] - x[1]) for x in tl)
    dr = T[name + ".mtp_draft_ids"].tolist()[:-1]
    e = out.index(1) if 1 in out else NEW - 1
    meta.append(
        {
            "name": name,
            "tokens": n,
            "prompt": raw.decode(ids, skip_special_tokens=False),
            "greedy_text": raw.decode(out, skip_special_tokens=False),
            "min_top1_gap": round(gap, 5),
            "mtp_accept": f"{sum(a == b for a, b in zip(dr[:e], out[1:e+1]))}/{e}",
        }
    )
    print(
        name, n, f"{time.time()-t0:.1f}s", repr(meta[-1]["greedy_text"][:100]), gap, meta[-1]["mtp_accept"], flush=True
    )
save_file({k: v.contiguous() for k, v in T.items()}, os.path.join(G, "prompts.safetensors"))
json.dump(meta, open(os.path.join(G, "prompts.json"), "w"), ensure_ascii=False, indent=1)

# ---------- tokenizer ----------
# fmt: off
S = ["", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", " \t\n x", "a", " a", "a ", " a ", "  a  b   c", "Hello", "Hello, world!", "hello world", "HELLO WORLD", "it's", "IT'S", "they're we've I'm", "don't'", "'quoted'", "\"double\"", "a.b.c", "...", "…", "!!!", "?!?!", "a,b;c:d", "foo_bar", "fooBar", "foo-bar", "#include", "$HOME", "%d", "&amp;", "(x)", "*p", "/usr/bin", "\\n", "[0]", "^a", "`code`", "{x}", "|a|", "~user", "@me", "=x", "+1", "<b>", ">x",
 "0", "1", "12", "123", "1234", "12345", "1234567890", "3.14", "1,000,000", "-5", "1e-6", "0x1F", "v1.2.3", "2024-03-12", "12:30:45", "a1b2", "1a2b", "１２３", "１２３４", "１２３４５６７", "٣٤٥٦", "१२३४५", "Ⅷ", "①②③④", "²³", "½", "x²", "10€", "€10", "100%",
 "你好", "你好，世界！", "大语言模型", "大语言模型可以回答问题。", "今天天气很好123", "中文English混合", "こんにちは", "カタカナ", "ひらがなとカタカナ", "東京タワー", "日本語のテスト。", "안녕하세요", "안녕하세요 세계", "한국어 테스트", "繁體中文", "龥", "龦", "一", "丁", "〇", "々", "ー", "ヿ", "ァ", "㐀", "𠀀", "𠮷野家",
 "Привет, мир!", "Ёжик", "Γειά σου", "שלום עולם", "مرحبا بالعالم", "नमस्ते", "สวัสดี", "ไทย", "Việt Nam", "Straße", "ÜBER", "naïve café", "cafe\u0301", "e\u0301", "\u0301", "a\u0308o\u0308", "Å", "A\u030a", "İstanbul", "ﬁ", "ǆ", "ß", "ŉ", "Ǆ",
 "😀", "😀😀", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🇩🇪", "🇩", "❤️", "❤", "☃", "✅ done", "a😀b", " 😀", "😀 ", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🫠", "→", "← →", "×", "÷", "≤", "±1", "°C", "™", "©", "§", "¶", "•", "—", "–", "“x”", "‘y’", "«z»", "、。", "！？", "（）", "￥", "￥１００",
 "\u200b", "a\u200bb", "\u200d", "\ufeff", "\ufeffabc", "\u00a0", "a\u00a0b", "\u2003x", "\u3000", "\u3000你好", "\u2028", "\u2029", "\u0085", "\x00", "\x01\x02", "\x1b[0m", "\x7f", "\x0b", "\x0c", "a\x00b", "\ufffd", "\ufffd\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000",
 "<｜User｜>", "<｜User｜>Hi<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜>", " <｜User｜> ", "a<｜User｜>b", "<|User|>", "<｜User|>", "<｜User", "User｜>", "<｜", "｜", "▁", "<｜▁pad▁｜>", "<|EOT|>", "<｜fim▁hole｜>", "<｜tool▁sep｜>", "function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Oslo\"}\n```", "<｜place▁holder▁no▁0｜>", "<｜place▁holder▁no▁16｜>", "<｜place▁holder▁no▁99｜>", "<<｜User｜>>", "<｜User｜><｜User｜>", "<think>", "</think>",
 "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\ta[i] *= 2;\n}\n", "if x == 'a':\n        pass", "#include <stdio.h>\n", "SELECT * FROM t WHERE a >= 1;", "<div class=\"row\"></div>", "https://example.com/a/b?c=d&e=f#g", "user@example.com", "C:\\Users\\x", "std::vector<int> v;", "x->y", "a&&b||c", "!x", "i++;", "//comment", "/* c */", "# comment", "```python\nprint(1)\n```", "{\"a\": [1, 2, {\"b\": null}]}", "a=b", "a = b", "a==b", "a!=b", "$x_1^2$", "\\frac{a}{b}", "f\"{x}\"", "%s\\n", "0b1010", "1_000", "--flag=value", "~/.bashrc", "<!-- x -->",
 "a" * 50, "ab" * 30, " " * 20, "\n" * 10, "\t" * 8, "." * 30, "-" * 40, "=" * 17, "0" * 10, "9" * 31, "你" * 10, "😀" * 6, " x" * 12, "x " * 12, "\r\n" * 4, " \n" * 4, "\n\t" * 4, "a\n\nb", "a \n b", "a\r\nb", "a\n\n\n b", "  leading", "trailing  ", "mid  dle", "\n  indented\n    more", "tab\tsep\tvalues", "x\u00a0\u00a0y", "word\n", "word \n\n", "(a) (b)", "a/b/c", "A.B.C.", "U.S.A.", "e.g., this", "Mr. Smith's", "rock'n'roll", "O'Brien", "l'été", "d'accord", "'s", "'S", "'x", "\"'", "'\"x", "!a", "!ab c", "#a1", "_a", "__init__", "a_b_c", "_1", "1_a", "é", "éa", "aé", "Ω", "Σίσυφος", "я", "₽", "𝒳", "𝟙", "ℕ", "ª", "º", "µ", "a\u0300\u0301b", "क्षि", "กำ", "ளி", "\u0e33", "\u093f"]
# fmt: on
q = random.Random(4)
for _ in range(40):
    S.append(sample(q)["answer"][:200])
for _ in range(40):
    S.append(
        "".join(
            chr(
                q.choice(
                    [
                        q.randrange(32, 127),
                        q.randrange(32, 127),
                        q.randrange(0xA0, 0x250),
                        q.randrange(0x4E00, 0x9FA6),
                        q.randrange(0x3040, 0x3100),
                        q.randrange(0x1F600, 0x1F640),
                        q.randrange(0x400, 0x460),
                        q.randrange(0x0, 0x20),
                        q.randrange(0x2000, 0x2070),
                    ]
                )
            )
            for _ in range(q.randrange(1, 24))
        )
    )
for _ in range(20):
    S.append(
        "".join(
            q.choice([" ", "  ", "\n", "\t", "a", "Z", "1", "23", ".", ",", "'", "-", "\r\n", "你", "é", "_", "$"])
            for _ in range(q.randrange(3, 30))
        )
    )
S = list(dict.fromkeys(S))
with open(os.path.join(G, "tokenizer_cases.jsonl"), "w", encoding="utf-8") as f:
    for s in S:
        i = enc(s)
        f.write(json.dumps({"text": s, "ids": i, "decoded": raw.decode(i, skip_special_tokens=False)}) + "\n")
nd = 0
with open(
    os.path.join(G, "decode_cases.jsonl"), "w", encoding="utf-8"
) as f:  # arbitrary ids, also invalid UTF-8 (HF puts U+FFFD)
    for k in range(80):
        i = [q.randrange(3, 259) if k % 2 else q.randrange(0, 4096) for _ in range(q.randrange(1, 14))]
        f.write(
            json.dumps(
                {
                    "ids": i,
                    "decoded": raw.decode(i, skip_special_tokens=False),
                    "decoded_skip_special": raw.decode(i, skip_special_tokens=True),
                }
            )
            + "\n"
        )
        nd += 1
print("tokenizer cases", len(S), "decode cases", nd)


# ---------- chat template ----------
def A(t):
    return {"role": "assistant", "content": t}


def Y(t):
    return {"role": "system", "content": t}


def call(n, a, c=None):
    return {
        "role": "assistant",
        "content": c,
        "tool_calls": [{"type": "function", "function": {"name": x, "arguments": json.dumps(y)}} for x, y in zip(n, a)],
    }


def TL(t):
    return {"role": "tool", "content": t}


sp = [tool_spec(t) for t in TOOLS]
C = [
    dict(messages=U("Hello")),
    dict(messages=U("Hello"), add_generation_prompt=False),
    dict(messages=[Y("Be brief.")] + U("Hi")),
    dict(messages=[Y("One."), Y("Two.")] + U("Hi")),
    dict(messages=[Y("")] + U("Hi")),
    dict(messages=[Y("")], add_generation_prompt=True),
    dict(messages=[Y("Only system")]),
    dict(messages=[Y("Only system")], add_generation_prompt=False),
    dict(messages=U("a") + [A("b")] + U("c")),
    dict(messages=U("a") + [A("b")], add_generation_prompt=False),
    dict(messages=U("a") + [A("b")], add_generation_prompt=True),
    dict(messages=U("a") + U("b")),
    dict(messages=U("")),
    dict(messages=U(" spaces  and\nnewlines\n")),
    dict(messages=U("<｜User｜> inside")),
    dict(messages=U("你好 😀")),
    dict(messages=U("a") + [A("")] + U("b")),
    dict(messages=[A("first")]),
    dict(messages=U("x") + [Y("late system")]),
    dict(messages=U("What is the weather in Oslo?"), tools=sp[:1]),
    dict(messages=[Y("Sys.")] + U("Weather?"), tools=sp),
    dict(messages=U("q"), tools=[]),
    dict(messages=U("q") + [call(["get_weather"], [{"city": "Oslo"}])], tools=sp[:1], add_generation_prompt=False),
    dict(messages=U("q") + [call(["get_weather"], [{"city": "Oslo"}]), TL('{"sky": "sunny"}')], tools=sp[:1]),
    dict(
        messages=U("q") + [call(["get_weather", "get_time"], [{"city": "Oslo"}, {"city": "Rome"}]), TL("1"), TL("2")],
        tools=sp[:2],
    ),
    dict(
        messages=U("q")
        + [call(["get_weather"], [{"city": "Oslo"}], "Let me look."), TL("x"), A("It is x.")]
        + U("thanks"),
        tools=sp[:1],
    ),
    dict(messages=U("q") + [call(["get_time"], [{"city": "東京"}]), TL("x"), A("y")], add_generation_prompt=False),
    dict(messages=U("q") + [call(["get_time"], [{}]), TL("x"), call(["get_price"], [{"item": "cup"}]), TL("y")]),
    dict(messages=U("q") + [call(["get_time"], [{}]), TL("x")] + U("never mind")),
    dict(messages=U("q") + [{"role": "assistant", "content": "a", "tool_calls": []}] + U("z")),
    dict(
        messages=U("q"),
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": 'Ünï "q" \\ / <&>',
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
    ),
]
q = random.Random(8)
while len(C) < 60:
    e = sample(q)
    if "messages" in e and e["task"] != "passkey_long":
        C.append(dict(messages=e["messages"], **({"tools": e["tools"]} if "tools" in e else {})))
with open(os.path.join(G, "chat_cases.jsonl"), "w", encoding="utf-8") as f:
    for c in C:
        c.setdefault("add_generation_prompt", True)
        t = tk.apply_chat_template(
            c["messages"],
            tools=c.get("tools") or None,
            tokenize=False,
            add_generation_prompt=c["add_generation_prompt"],
        )
        f.write(json.dumps({**c, "text": t, "ids": enc(t)}, ensure_ascii=False) + "\n")
print("chat cases", len(C))
