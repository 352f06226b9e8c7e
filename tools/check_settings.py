#!/usr/bin/env python3
"""Every setting that "works" must be read by something outside the table: a setting that does nothing is a lie.

A row counts as read when its name stands as a word in src/ (without src/base/) or apps/. Rows with another answer
(refused, not_yet, noted) and rows that only count together with another setting (only_with) are left out.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
OTHER_ANSWER = re.compile(r"\b(refused|not_yet|noted|only_with)\(")


def rows(text):
    """Name and text of each SETTING and FIELD, by counting parentheses outside of strings. A FIELD has its object's
    attributes too."""
    objects = {}
    for start in re.finditer(r"^(SETTING|FIELD|OBJECT)\(", text, re.M):
        depth, at, in_string = 1, start.end(), False
        while depth:
            c = text[at]
            if in_string:
                at += c == "\\"
                in_string = c != '"'
            elif c == '"':
                in_string = True
            else:
                depth += (c == "(") - (c == ")")
            at += 1
        body = text[start.end() : at - 1]
        plain = re.sub(r"<[^()]*?>+", "", body)  # std::optional<std::string> has no comma of ours
        cells = [cell.strip() for cell in plain.split(",")]
        if start.group(1) == "OBJECT":
            objects[cells[1]] = body
        elif start.group(1) == "FIELD":
            yield cells[2], objects[cells[0]] + body
        else:
            yield cells[1], body


def main():
    code = "\n".join(
        p.read_text() for room in ("src", "apps") for p in (ROOT / room).rglob("*")
        if p.suffix in (".cc", ".h", ".inc") and ROOT / "src/base" not in p.parents)
    words = set(re.findall(r"\w+", code))
    table = (ROOT / "src/base/settings/settings.def").read_text()
    unread = [name for name, body in rows(table) if not OTHER_ANSWER.search(body) and name not in words]
    for name in unread:
        print(f"src/base/settings/settings.def: {name} works by its row, but nothing reads it")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
