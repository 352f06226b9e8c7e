#!/usr/bin/env python3
"""Adds up JUnit files into one last line: N passed, N failed[, N skipped].

    count_tests.py [--checks PASSED FAILED] FOLDER...

A FOLDER holds ctest.xml (one entry per test binary), gtest/*.xml (the cases of those that are GoogleTest), product.xml and ray-VERSION.xml.
A binary that wrote its gtest file is counted by its cases; one that crashed before it could is one failure.
"""
import argparse
import pathlib
import sys
import xml.etree.ElementTree as ET


def cases(path):
    """-> {test case: passed | failed | skipped}"""
    found = {}
    for number, case in enumerate(ET.parse(path).iter("testcase")):
        if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
            verdict = "failed"
        elif case.find("skipped") is not None or case.get("result") in ("skipped", "suppressed"):
            verdict = "skipped"
        else:
            verdict = "passed"
        found[f"{number} {case.get('name')}"] = verdict
    return found


def folder_verdicts(folder):
    verdicts = []
    inside = {path.stem: list(cases(path).values()) for path in sorted(folder.glob("gtest/*.xml"))}
    for verdict in inside.values():
        verdicts += verdict
    if (folder / "ctest.xml").exists():
        for key, verdict in cases(folder / "ctest.xml").items():
            seen = inside.get(f"manta_{key.split(' ', 1)[1]}_test")
            if seen is None or (verdict == "failed" and "failed" not in seen):
                verdicts.append(verdict)
    for path in sorted(folder.glob("*.xml")):
        if path.name != "ctest.xml":  # product.xml, one for each version of Ray
            verdicts += cases(path).values()
    return verdicts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checks", nargs=2, type=int, default=[0, 0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    verdicts = [verdict for folder in options.folders for verdict in folder_verdicts(folder)]
    passed = verdicts.count("passed") + options.checks[0]
    failed = verdicts.count("failed") + options.checks[1]
    skipped = verdicts.count("skipped")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
