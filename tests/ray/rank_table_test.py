"""Who gets which DP rank."""

from manta_ray.rank_table import RankTable


def seated(table, who, now=0.0):
    return [table.register(replica, node, now) for replica, node in who]


def test_ranks_are_packed_by_node():
    table = RankTable(4, 2)
    assert seated(table, [("a", "n1"), ("b", "n2"), ("c", "n1"), ("d", "n2")]) == [0, 2, 1, 3]


def test_asking_again_gives_the_same_rank():
    table = RankTable(2, 2)
    assert table.register("a", "n1", 0.0) == 0
    assert table.register("a", "n1", 1.0) == 0


def test_one_node_may_hold_all_blocks():
    assert seated(RankTable(4, 2), [(r, "n1") for r in "abcd"]) == [0, 1, 2, 3]


def test_nobody_is_seated_twice_and_the_rest_wait():
    table = RankTable(2, 2)
    assert seated(table, [("a", "n1"), ("b", "n1"), ("c", "n1")]) == [0, 1, None]


def test_a_replacement_takes_the_rank_when_the_lease_has_ended():
    table = RankTable(2, 2, lease_s=5)
    seated(table, [("a", "n1"), ("b", "n1")])
    assert table.claim("b", "n1", 1, 4.0)
    assert table.register("c", "n1", 4.9) is None
    assert table.register("c", "n1", 5.1) == 0
    assert not table.claim("a", "n1", 0, 5.2)  # it must not believe that it still is rank 0
    assert table.claim("b", "n1", 1, 5.2)


def test_a_released_rank_is_free_at_once():
    table = RankTable(2, 2)
    seated(table, [("a", "n1"), ("b", "n1")])
    table.release("a")
    assert table.register("c", "n1", 0.1) == 0


def test_the_block_of_a_dead_node_moves_to_another():
    table = RankTable(4, 2, lease_s=5)
    seated(table, [("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")])
    for replica, rank in (("a", 0), ("b", 1)):
        assert table.claim(replica, "n1", rank, 4.0)
    assert [table.register(r, "n3", 6.0) for r in "ef"] == [2, 3]


def test_a_replacement_stays_in_the_block_of_its_node():
    table = RankTable(4, 2, lease_s=5)
    seated(table, [("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")])
    for replica, node, rank in (("a", "n1", 0), ("b", "n1", 1), ("c", "n2", 2)):
        assert table.claim(replica, node, rank, 4.0)
    assert table.register("e", "n2", 6.0) == 3


def test_the_epoch_grows_with_every_change_of_hands():
    table = RankTable(1, 1, lease_s=5)
    table.register("a", "n1", 0.0)
    first = table.epoch
    table.register("a", "n1", 1.0)
    assert table.epoch == first
    table.register("b", "n1", 9.0)
    assert table.epoch > first


def test_a_rank_away_from_its_neighbours_is_better_than_none():
    table = RankTable(4, 2, lease_s=5)
    seated(table, [("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")])
    table.release("d")
    assert table.register("e", "n1", 0.1) == 3


def test_a_table_that_was_lost_waits_for_its_tenants():
    table = RankTable(2, 2, lease_s=5, closed_until=5.0)
    assert table.register("c", "n1", 0.5) is None
    assert table.claim("b", "n1", 1, 1.0)
    assert not table.claim("c", "n1", 1, 1.5)
    assert [table.register(r, "n1", 5.0) for r in "cd"] == [0, None]
