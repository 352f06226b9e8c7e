"""Who is which DP rank. Pure bookkeeping without Ray and without a clock, so that its rules can be tested in microseconds.

Ranks are packed by node: a node takes whole blocks of `ranks_per_node` consecutive ranks while it can. A rank belongs to a
replica as long as that replica's lease runs; the replacement of a dead replica gets its rank when the lease has ended, on
the same node or, when the node is gone, on another one.
"""

import dataclasses


@dataclasses.dataclass
class Seat:
    replica: str
    node: str
    lease_end: float


class RankTable:
    def __init__(self, dp_size: int, ranks_per_node: int, lease_s: float = 5.0, closed_until: float = 0.0):
        """`closed_until`: a table that was lost and begins anew gives out nothing before its old tenants can have claimed theirs."""
        if dp_size % ranks_per_node:
            raise ValueError(f"{ranks_per_node} ranks a node do not divide {dp_size}")
        self.dp_size, self.ranks_per_node, self.lease_s = dp_size, ranks_per_node, lease_s
        self.seats: dict[int, Seat] = {}
        self.epoch = 0  # grows whenever a seat changes hands
        self._closed_until = closed_until
        self._node_of_block: dict[int, str] = {}

    def register(self, replica: str, node: str, now: float) -> int | None:
        """The rank of this replica; None: none is free yet, ask again. Asking again is harmless."""
        self.expire(now)
        for rank, seat in self.seats.items():
            if seat.replica == replica:
                seat.lease_end = now + self.lease_s
                return rank
        rank = self._free_rank(node) if now >= self._closed_until else None
        if rank is not None:
            self._seat(rank, replica, node, now)
        return rank

    def claim(self, replica: str, node: str, rank: int, now: float) -> bool:
        """Renews a lease. False: the rank is another's by now; register again under a new name."""
        self.expire(now)
        seat = self.seats.get(rank)
        if seat is None:
            self._seat(rank, replica, node, now)
        elif seat.replica != replica:
            return False
        self.seats[rank].lease_end = now + self.lease_s
        return True

    def release(self, replica: str) -> None:
        for rank in [r for r, seat in self.seats.items() if seat.replica == replica]:
            del self.seats[rank]
            self.epoch += 1

    def expire(self, now: float) -> None:
        for rank in [r for r, seat in self.seats.items() if seat.lease_end < now]:
            del self.seats[rank]
            self.epoch += 1

    def _seat(self, rank: int, replica: str, node: str, now: float) -> None:
        self.seats[rank] = Seat(replica, node, now + self.lease_s)
        self._node_of_block[rank // self.ranks_per_node] = node
        self.epoch += 1

    def _free_rank(self, node: str) -> int | None:
        """First in a block this node has, then in one nobody has, then in one whose node has no rank left, then anywhere: a rank
        away from its neighbours is better than none."""
        blocks = range(self.dp_size // self.ranks_per_node)
        own = [b for b in blocks if self._node_of_block.get(b) == node]
        unowned = [b for b in blocks if b not in self._node_of_block]
        deserted = [b for b in blocks if b not in own and b not in unowned and not self._taken(b)]
        for block in [*own, *unowned, *deserted, *blocks]:
            taken = self._taken(block)
            for rank in range(block * self.ranks_per_node, (block + 1) * self.ranks_per_node):
                if rank not in taken:
                    return rank
        return None

    def _taken(self, block: int) -> set:
        first = block * self.ranks_per_node
        return {r for r in range(first, first + self.ranks_per_node) if r in self.seats}
