"""Items made in another thread: the same ones in the same order, an error in its place, and no more than are wanted."""

import threading
from itertools import islice

import pytest

from compressor.ahead import ahead


def test_the_same_items_in_order():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, None])) == [None, None]


def test_they_are_made_in_one_other_thread():
    makers = set(ahead(threading.get_ident() for _ in range(20)))
    assert len(makers) == 1
    assert makers != {threading.get_ident()}


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        yield 2
        raise ValueError("the third")

    taken = []
    with pytest.raises(ValueError, match="the third"):
        taken.extend(ahead(items()))
    assert taken == [1, 2]


def test_no_more_is_made_than_so_many_before_they_are_taken():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    stream = ahead(items(), depth=3)
    assert list(islice(stream, 2)) == [0, 1]
    stream.close()
    assert len(made) <= 2 + 3
