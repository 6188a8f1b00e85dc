"""The arithmetic of the benchmark and its table; no process is started."""

import pytest

from benchmarks import scaling

PROGRAM = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %all-reduce.1 = (f32[64]{0}, bf16[3,3,4,4]{3,2,1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %all-reduce.2 = f32[] all-reduce(%c), channel_id=2, to_apply=%add
  ROOT %gathered = f32[8]{0} all-gather(%p), channel_id=3, dimensions={0}
}
"""


def test_collectives_are_counted_by_kind_and_their_bytes_added():
    found = scaling.count_collectives(PROGRAM)
    assert found == {"kinds": {"all-reduce": 2, "all-gather": 1}, "bytes": 4 * 64 + 2 * 144 + 4 + 32}
    assert scaling.count_collectives("ENTRY %main () -> f32[] {\n}") == {"kinds": {}, "bytes": 0}


def test_a_step_lasts_as_long_as_its_slowest_process():
    first = {"feed": [1.0, 1.0], "call": [2.0, 3.0], "wait": [7.0, 5.0]}  # 10 and 9 ms
    second = {"feed": [2.0, 1.0], "call": [1.0, 1.0], "wait": [6.0, 9.0]}  # 9 and 11 ms
    later = {"feed": [9.0], "call": [0.0], "wait": [11.0]}
    assert scaling.summarize([[first, second]]) == {"step": 10.5, "feed": 1.5, "call": 2.5}
    assert scaling.summarize([[first, second], [later, later]]) == {"step": 11.0, "feed": 2.0, "call": 2.0}


def test_processes_that_ran_unequal_numbers_of_steps_are_an_error():
    one, two = ({part: [1.0] * steps for part in scaling.PARTS} for steps in (1, 2))
    with pytest.raises(ValueError):
        scaling.summarize([[one, two]])


def test_table_compares_with_the_first_layout():
    medians = {
        (1, 1): {"step": 200.0, "feed": 0.25, "call": 1.5},
        (2, 2): {"step": 230.0, "feed": 0.5, "call": 12.0},
    }
    exchanged = {(1, 1): {"kinds": {}, "bytes": 0}, (2, 2): {"kinds": {"all-reduce": 7}, "bytes": 1_234_500}}
    assert scaling.table(medians, exchanged).splitlines() == [
        "| processes x devices | step ms | more ms | ratio | feed ms | call ms | collectives | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| 1x1 | 200.0 | 0.0 | 1.00 | 0.25 | 1.50 | 0 | 0.000 |",
        "| 2x2 | 230.0 | 30.0 | 1.15 | 0.50 | 12.00 | 7 all-reduce | 1.234 |",
    ]
