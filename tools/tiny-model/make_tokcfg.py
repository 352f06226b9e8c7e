import json
import sys
import shutil

D = sys.argv[1]


def t(c):
    return {
        "__type": "AddedToken",
        "content": c,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


json.dump(
    {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": t("<｜begin▁of▁sentence｜>"),
        "clean_up_tokenization_spaces": False,
        "eos_token": t("<｜end▁of▁sentence｜>"),
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": t("<｜end▁of▁sentence｜>"),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": open("chat_template.jinja", encoding="utf-8").read(),
    },
    open(D + "/tokenizer_config.json", "w"),
    ensure_ascii=False,
    indent=2,
)
shutil.copy("tokenizer.json", D + "/tokenizer.json")
