"""Time that goes by without images."""

import time
from collections.abc import Iterator

from pgnas_cli.training.waiting import Waiting


def test_the_seconds_between_asking_and_getting_are_counted() -> None:
    def slow() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.05)
            yield item

    waiting, found = Waiting(), []
    for item in waiting.over(slow()):
        found.append(item)
        time.sleep(0.1)  # a step
    assert found == [0, 1, 2]
    assert 0.15 <= waiting.taken() < 0.3
    assert waiting.taken() == 0
