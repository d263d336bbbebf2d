"""Rows of one length out of texts of many, and the end of each."""

import numpy as np

from compressor.measure.batches import greedy_rows, in_groups, padded_behind, padded_in_front

TEXTS = [np.array([7, 8, 9]), np.array([5])]


def test_padding_is_behind_texts_and_in_front_of_prompts():
    assert padded_behind(TEXTS).tolist() == [[7, 8, 9], [5, 0, 0]]
    rows, mask = padded_in_front(TEXTS)
    assert rows.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_each_row_ends_by_itself_and_all_of_them_end_the_asking():
    asked = []

    def following(last):
        asked.append(last.tolist())
        return last + 1

    rows = greedy_rows(np.array([10, 20, 30]), following, 4, lambda row: row[-1] in (10, 22))
    assert rows == [[10], [20, 21, 22], [30, 31, 32, 33]]
    assert asked == [[10, 20, 30], [11, 21, 31], [12, 22, 32]]
    assert greedy_rows(np.array([1]), following, 1, lambda row: False) == [[1]]


def test_groups_hold_every_text_once_shortest_first():
    lengths = [9, 3, 4, 20, 3]
    assert list(in_groups(lengths, lambda count, shortest, longest: count <= 2)) == [[1, 4], [2, 0], [3]]
    assert list(in_groups(lengths, lambda count, shortest, longest: longest <= 2 * shortest)) == [[1, 4, 2], [0], [3]]
    assert list(in_groups([], lambda *_: True)) == []
