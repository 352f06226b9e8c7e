"""How long a fault goes unnamed, and how long after the replacement is there all serve again: taken in every cell of the
fault matrix. With --fault-times FILE they are written out as a table and held against the bars."""

import threading
import time

import httpx

from deployment import metric

NAMED_WITHIN, SERVING_WITHIN = 5, 10  # seconds


class FirstAnswer(threading.Thread):
    """The first moment after begin() at which answers() is true."""

    def __init__(self, answers):
        super().__init__(daemon=True)
        self.answers = answers
        self.begun = threading.Event()
        self.given_up = threading.Event()
        self.since = self.at = None
        self.start()

    def begin(self, since=None):
        self.since = time.monotonic() if since is None else since
        self.begun.set()

    def run(self):
        self.begun.wait()
        while not self.given_up.is_set():
            if self.answers():
                self.at = time.monotonic()
                return
            self.given_up.wait(0.02)

    def seconds(self, timeout=60):
        self.join(timeout)
        self.given_up.set()
        assert self.at is not None, "it did not serve again"
        return self.at - self.since


def whole_and_answering(url, num_ranks):
    """A new request is answered, by a group of all ranks."""
    try:
        if metric(url, "manta_ep_group_ranks") != num_ranks**2:
            return False
        body = {"prompt": [5, 6, 7], "max_tokens": 1}
        return httpx.post(url + "/v1/completions", json=body, timeout=30).status_code == 200
    except (httpx.HTTPError, AssertionError):
        return False


class FaultTimes:
    def __init__(self, path):
        self.path = path
        self.rows = []

    def note(self, cell, named, serving):
        self.rows.append((*cell, named, serving))
        if not self.path:
            return
        self.write()  # each time, so that an interrupted run leaves what it saw
        assert named <= NAMED_WITHIN and serving <= SERVING_WITHIN, f"named {named:.2f} s, serving {serving:.2f} s"

    def write(self):
        lines = ["| process | fault | while | named after, s | serving again after, s |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {what} | {fault} | {phase} | {named:.2f} | {serving:.2f} |"
                  for what, fault, phase, named, serving in self.rows]
        worst = [max(row[i] for row in self.rows) for i in (3, 4)]
        lines.append(f"| worst of {len(self.rows)} | | | {worst[0]:.2f} | {worst[1]:.2f} |")
        with open(self.path, "w", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
