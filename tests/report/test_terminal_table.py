"""The table in the terminal."""

from lightning_distill.report.tables import columns_that_fit

SCORES = ("size", "nll", "perplexity", "agreement", "ECE", "gap closed", "… of best", "seconds")
CELLS = ("0.23 M", "5.394 ± 0.012", "220.0 ± 2.6", "0.32 ± 0.01", "0.010", "25 ± 1 %", "9 %", "9")


def test_at_80_columns_the_keys_of_a_sweep_the_nll_and_the_gap_remain():
    keys = ("hidden_size", "temperature", "alpha")
    headings = (*keys, *SCORES)
    kept = columns_that_fit(headings, [("32", "1", "1 (3 seeds)", *CELLS)], 80)
    assert [headings[i] for i in kept] == [*keys, "nll", "gap closed"]


def test_where_there_is_room_nothing_is_left_out():
    assert columns_that_fit(SCORES, [CELLS], 120) == list(range(len(SCORES)))
