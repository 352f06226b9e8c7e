"""Byte-level BPE with DeepSeek-V3's pre-tokenizer shape, trained on generator output and a few hand-written lines."""

import sys
import json
import random
from tokenizers import Tokenizer, models, trainers, pre_tokenizers, Regex, decoders, AddedToken, normalizers, processors
from gen import sample, WORDS
from data import render

OUT = sys.argv[1] if len(sys.argv) > 1 else "tokenizer.json"
VOCAB = 4096
P1 = "\\p{N}{1,3}"
P2 = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
P3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"


def pre(extra=()):
    def S(p):
        return pre_tokenizers.Split(Regex(p), "isolated", invert=False)

    return pre_tokenizers.Sequence(
        [S(p) for p in extra]
        + [S(P1), S(P2), S(P3), pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)]
    )


SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
CHAT = [
    "<｜fim▁hole｜>",
    "<｜fim▁begin｜>",
    "<｜fim▁end｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|EOT|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
]
NPLACE = 17
LINES = """大语言模型可以回答问题。今天天气很好，我们去公园散步。你好，世界！请问图书馆在哪里？专家并行把专家分布到多个显卡上。预填充和解码可以分开运行。
こんにちは、世界。今日はとても良い天気です。図書館はどこですか。ありがとうございます。私は学生です。カタカナとひらがなを使います。
안녕하세요 세계. 오늘은 날씨가 좋습니다. 감사합니다.
Hola, ¿cómo estás? El niño come una manzana en la montaña. Mañana será otro día. Muchas gracias por tu ayuda.
Guten Tag! Die Straße ist groß und schön. Wir können später über die Brücke gehen. Vielen Dank für alles.
Bonjour, où est la bibliothèque? L'été dernier, nous avons mangé des crêpes près de la forêt. C'est très agréable.
Привет, мир! Сегодня хорошая погода. Где находится библиотека? Большое спасибо за помощь.
مرحبا بالعالم. شكرا جزيلا. नमस्ते दुनिया। धन्यवाद। สวัสดีชาวโลก Γειά σου κόσμε. שלום עולם.
😀 😂 🎉 👍 ❤️ 🚀 🙂 👋🏽 👩‍💻 🇩🇪 ✅ → ← ≤ ≥ ≠ × ÷ € £ ° … – — “ ” ‘ ’ « » • ™ ½ ² ³
def main(args):\n    for i in range(len(args)):\n        print(i, args[i])\n    return 0\n
#include <stdio.h>\nint main(void) {\n    printf("hello\\n");\n    return 0;\n}\n
class Node:\n    def __init__(self, value, next=None):\n        self.value = value\n        self.next = next\n\n    def __repr__(self):\n        return f"Node({self.value})"\n
import numpy as np\nx = np.zeros((4, 4), dtype=np.float32)\nassert x.shape == (4, 4)\nif x.sum() != 0:\n    raise ValueError("bad")\n
SELECT name, age FROM people WHERE age >= 21 ORDER BY name;\n<div class="row"><a href="https://example.com/index.html">link</a></div>\n
const f = async (x) => { const y = await g(x); return y?.value ?? null; };\nfunction add(a, b) { return a + b; }\n
std::vector<int> v{1, 2, 3}; for (auto& x : v) { std::cout << x << std::endl; } // comment\n/* block */ template <typename T> struct S {};\n
１２３４５６７８９０ １２３ ４５６ ٣٤٥٦ १२३४ Ⅷ ① ② ③
The quick brown fox jumps over the lazy dog. It's, they're, we've, I'm, you'll, he'd, don't. \t tabs\tand   spaces    here.\r\nnew line\n\n\nend
""".split(
    "\n"
)


def corpus():
    r = random.Random(7)
    for _ in range(60000):
        e = sample(r)
        if e["task"] == "passkey_long":
            continue
        t = render(e) + e["answer"]
        for s in SPECIAL + CHAT:
            t = t.replace(s, "\n")
        yield t
    for w in WORDS:
        for f in (w, w.capitalize(), " " + w.capitalize(), w.upper()):
            yield (f + ",") * 3
    for _ in range(40):
        for l in LINES:
            yield l.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")


if __name__ == "__main__":
    tok = Tokenizer(models.BPE())
    # while training, ASCII digits are cut apart so that no merge joins them: the model sees one token per digit
    tok.pre_tokenizer = pre(["[0-9]"])
    n = VOCAB - len(CHAT) - NPLACE
    tok.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=n,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
            show_progress=False,
        ),
    )
    got = tok.get_vocab_size()
    print("base vocab", got, "wanted", n)
    j = json.loads(tok.to_str())
    m = j["model"]
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre()
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tok.add_tokens(
        [AddedToken(f"<｜place▁holder▁no▁{i}｜>", special=False, normalized=True) for i in range(NPLACE + n - got)]
    )
    tok.add_tokens([AddedToken(c, special=False, normalized=True) for c in CHAT])
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    tok.save(OUT)
    j = json.load(open(OUT))
    print({k: v for k, v in j.items() if k not in ("model", "added_tokens")})
    print(len(j["model"]["merges"]), [a for a in j["added_tokens"] if a["id"] < 3])
    print(
        tok.encode("<｜User｜>What is 47 + 385?<｜Assistant｜>", add_special_tokens=False).tokens,
        [tok.token_to_id(c) for c in CHAT][:5],
    )
