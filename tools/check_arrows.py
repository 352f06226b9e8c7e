#!/usr/bin/env python3
"""Holds every #include "room/..." and every manta_room(... DEPS ...) against the table in src/README.md.

Fails on an arrow the table does not allow, a room folder without a row, a row without a folder, and an include between
two rooms that CMake does not link. Prints one line per fault: file:line: what is wrong.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = (".h", ".cc", ".inc", ".cu", ".cuh")


def read_table(readme):
    """-> {room: set of rooms it may use}; what stands in brackets after a room name is for the human reader."""
    rooms = {}
    for line in readme.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        match = re.fullmatch(r"`(\w+)/`", cells[0])
        if match and len(cells) == 3:
            uses = re.sub(r"\([^)]*\)", "", cells[2])
            rooms[match[1]] = set() if uses == "nothing" else {use.strip() for use in uses.split(",")}
    return rooms


def check_includes(rooms, linked, faults):
    for path in sorted([*(ROOT / "src").rglob("*"), *(ROOT / "apps").rglob("*")]):
        if path.suffix not in SOURCES:
            continue
        tree, own = path.relative_to(ROOT).parts[:2]
        room = own if tree == "src" else None  # apps/ may use every room
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not match or match[1].split("/")[0] == own:
                continue
            at, target = f"{path.relative_to(ROOT)}:{number}", match[1].split("/")[0]
            if "/" not in match[1] or target not in rooms:
                faults.append(f'{at}: "{match[1]}": write a project include as "room/file.h"')
            elif room and target not in rooms.get(room, set()):
                faults.append(f"{at}: {room} may not use {target} (src/README.md)")
            elif room in linked and target not in linked[room]:
                faults.append(f"{at}: {room} includes {target} but src/{room}/CMakeLists.txt does not list it in DEPS")


def check_cmake(rooms, faults):
    """-> {room: the rooms it links}"""
    linked = {}
    for path in sorted((ROOT / "src").glob("*/CMakeLists.txt")):
        room = path.parent.name
        for call in re.findall(r"manta_room\(([^)]*)\)", re.sub(r"#.*", "", path.read_text())):
            deps = re.search(r"\bDEPS\b(.*?)(?:\b(?:LIBS|LEAVES)\b|$)", call, re.DOTALL)
            linked.setdefault(room, set()).update(deps[1].split() if deps else [])
        for use in sorted(linked.get(room, set()) - rooms.get(room, set())):
            faults.append(f"{path.relative_to(ROOT)}: {room} may not link {use} (src/README.md)")
    return linked


def main():
    faults = []
    rooms = read_table(ROOT / "src/README.md")
    for room, uses in rooms.items():
        faults += [f"src/README.md: {room} uses {use}, which has no row" for use in sorted(uses - rooms.keys())]
    folders = {path.name for path in (ROOT / "src").iterdir() if path.is_dir() and any(path.iterdir())}
    faults += [f"src/{room}/: no row in src/README.md" for room in sorted(folders - rooms.keys())]
    faults += [f"src/README.md: {room} has a row but no folder" for room in sorted(rooms.keys() - folders)]
    check_includes(rooms, check_cmake(rooms, faults), faults)
    print("\n".join(faults) if faults else f"arrows: {len(rooms)} rooms, no new arrow")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
