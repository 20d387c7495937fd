import itertools

import pytest

from samrobust.errors import RunError
from samrobust.runs.sharing import WHOLE, Shard, parse_shard

IDS = [f"image-{number}" for number in range(8000)]


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_each_image_is_in_one_share_in_the_order_of_the_run(count: int) -> None:
    shares = [Shard(number, count).share_of(IDS) for number in range(1, count + 1)]
    assert sorted(itertools.chain(*shares)) == sorted(IDS)
    assert all(share == sorted(share, key=IDS.index) for share in shares)
    even = len(IDS) / count
    assert all(abs(len(share) - even) < 5 * even**0.5 for share in shares)  # five deviations
    assert [Shard(number, count).share_of(IDS) for number in range(1, count + 1)] == shares


@pytest.mark.parametrize("then", [2, 4, 5, 16])
def test_what_one_shard_left_is_spread_over_another_number_of_shards(then: int) -> None:
    left = {*Shard(3, 8).share_of(IDS)}
    even = len(left) / then
    for number in range(1, then + 1):
        share = {*Shard(number, then).share_of(IDS)}
        assert abs(len(left & share) - even) < 5 * even**0.5


def test_a_share_of_a_shard_is_a_shard() -> None:
    assert WHOLE.split(2, 3) == Shard(2, 3)
    parts = {Shard(number, 2).split(part, 3) for number in (1, 2) for part in (1, 2, 3)}
    assert parts == {Shard(number, 6) for number in range(1, 7)}


def test_a_shard_is_read_and_what_is_none_is_refused() -> None:
    assert parse_shard("2/8") == Shard(2, 8)
    assert parse_shard("1/1") == WHOLE
    for text in ("0/8", "9/8", "8", "1/0", "-1/8", "1/8/2", "a/b", "", "1/99999999", "²/8"):
        with pytest.raises(
            RunError, match=r"--shard must be I/N with 1 <= I <= N, such as 2/8, got '"
        ):
            parse_shard(text)
