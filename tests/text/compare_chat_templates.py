#!/usr/bin/env python3
"""Compares our rendering of chat templates with transformers' on random conversations.

    .deps/oracle/bin/python tests/text/compare_chat_templates.py --tool build/cpu/tests/text/manta_text_compare [--cases N] [--seed S]
    ... --write tests/text/deepseek_chat_cases.jsonl     also writes the first cases of every template, for the unit test

Templates: DeepSeek's, as llama-cpp-python's source package has them (.deps/jinja/templates), and the embedded model's. A case where
transformers raises an error must be an error for us too; where it renders, the texts must be equal. Exits 1 when a case differs.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys

from transformers.utils.chat_template_utils import render_jinja_template

REPO = pathlib.Path(__file__).resolve().parents[2]
TOKENS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
TEXTS = ["", "a", "Hello", "two\nlines\n", "  padded  ", "a</think>b", "<think>x</think>y", "你好，世界", "😀 \u2028 \\ \" '", "{\"a\": 1}", "\t\r\n",
         "<｜User｜>", "100%", "{{ x }} {% y %}"]
NUMBERS = [0, 1, -5, 2**53 + 1, 2**63 - 1, -2**63, 1.0, 0.1, 1e-7, 1.5e300, 1e16, 123456789.123, -0.0, 3.141592653589793]
# Templates that join a call's arguments to text; the others apply tojson to them.
TEXT_ARGUMENTS = ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", "tiny-v3")
KEYS = ["x", "city", "é", "a b", "\"q\"", "nested", "type"]


def value(rng, depth=0):
    kinds = [lambda: rng.choice(TEXTS), lambda: rng.choice(NUMBERS), lambda: rng.choice((True, False, None))]
    if depth < 3:
        kinds += [lambda: [value(rng, depth + 1) for _ in range(rng.randrange(3))],
                  lambda: {k: value(rng, depth + 1) for k in rng.sample(KEYS, rng.randrange(4))}]
    return rng.choice(kinds)()


def tool_call(rng):
    return {"id": f"call_{rng.randrange(100)}", "type": "function",
            "function": {"name": rng.choice(("get_weather", "f", "search")),
                         "arguments": {k: value(rng) for k in rng.sample(KEYS, rng.randrange(3))}}}


def tool(rng):
    return {"type": "function", "function": {"name": rng.choice(("get_weather", "f")), "description": rng.choice(TEXTS),
            "parameters": {"type": "object", "properties": {k: value(rng) for k in rng.sample(KEYS, 2)}}, "strict": True}}


def conversation(rng):
    messages = []
    if rng.random() < 0.5:
        messages += [{"role": "system", "content": rng.choice(TEXTS)} for _ in range(rng.choice((1, 1, 2)))]
    for _ in range(rng.randrange(1, 4)):
        messages.append({"role": "user", "content": rng.choice(TEXTS)})
        if rng.random() < 0.4:
            calls = [tool_call(rng) for _ in range(rng.choice((1, 1, 2)))]
            messages.append({"role": "assistant", "content": rng.choice(TEXTS), "tool_calls": calls})
            messages += [{"role": "tool", "content": rng.choice(TEXTS), "tool_call_id": c["id"]} for c in calls]
        if rng.random() < 0.8:
            answer = {"role": "assistant", "content": rng.choice(TEXTS)}
            if rng.random() < 0.2:
                answer["reasoning_content"] = rng.choice(TEXTS)
            messages.append(answer)
    case = {"messages": messages, "add_generation_prompt": rng.random() < 0.6}
    if rng.random() < 0.4:
        case["tools"] = [tool(rng) for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.4:
        case["kwargs"] = {rng.choice(("thinking", "enable_thinking")): rng.random() < 0.5}
    if messages[-1]["role"] == "assistant" and not case["add_generation_prompt"] and rng.random() < 0.5:
        case["continue_final_message"] = True
    return case


def as_text_arguments(case):
    case = json.loads(json.dumps(case))
    for message in case["messages"]:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return case


def reference(template, case):
    try:
        rendered, _ = render_jinja_template([case["messages"]], tools=case.get("tools"), chat_template=template,
                                            add_generation_prompt=case["add_generation_prompt"],
                                            continue_final_message=case.get("continue_final_message", False),
                                            **TOKENS, **case.get("kwargs", {}))
        return {"text": rendered[0]}
    except Exception as e:  # any refusal: TemplateError, TypeError, …
        return {"error": f"{type(e).__name__}: {e}"}


def templates():
    found = {p.name: p.read_text(encoding="utf-8") for p in sorted((REPO / ".deps/jinja/templates").glob("*.jinja"))}
    config = json.loads((REPO / "models/tiny-v3/tokenizer_config.json").read_text(encoding="utf-8"))
    return {**found, "tiny-v3": config["chat_template"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tool", required=True)
    parser.add_argument("--cases", type=int, default=500, help="per template")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", help="a file for the first 12 cases of every template that render")
    args = parser.parse_args()
    lines, expected = [], []
    for name, template in templates().items():
        rng = random.Random(args.seed)
        for _ in range(args.cases):
            case = conversation(rng)
            if name in TEXT_ARGUMENTS:
                case = as_text_arguments(case)
            if name.startswith("llama-cpp"):
                case.pop("tools", None)  # this one was never meant for transformers, which cannot list tools with it
            lines.append({"template": template, "tokens": TOKENS, "input": case})
            expected.append((name, reference(template, case)))
    done = subprocess.run([args.tool, "render"], input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True,
                          encoding="utf-8", check=True)
    ours = [json.loads(line) for line in done.stdout.split("\n") if line]
    wrong, errors, written = 0, 0, {}
    for line, (name, theirs), got in zip(lines, expected, ours):
        errors += "error" in theirs
        same = got == theirs if "text" in theirs else "error" in got
        if not same:
            wrong += 1
            if wrong <= 10:
                print(f"{name}: {json.dumps(line['input'], ensure_ascii=False)}\n  ours:           {got}\n  transformers's: {theirs}")
        elif "text" in theirs and len(written.setdefault(name, [])) < 12:
            written[name].append({"template": name, "input": line["input"], "text": theirs["text"]})
    if args.write:
        with open(args.write, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(case, ensure_ascii=False) + "\n" for cases in written.values() for case in cases)
    print(f"{len(lines)} conversations, {len(templates())} templates, seed {args.seed}: {wrong} differ ({errors} are errors)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
