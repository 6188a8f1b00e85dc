import pytest

from gaternet_jax.training.run_plan import Plan, make_plan
from tests.helpers import digits_config


def plan(**fields):
    values = {"num_steps": 20, "last_step": 20, "log_every": 100, "eval_every": 100, "save_every": 100}
    return Plan(**values | {"steps_per_call": 6} | fields)


def ends(plan, done=0):
    """The steps after which dispatches end."""
    found = []
    for count in plan.calls(done):
        done += count
        found.append(done)
    return found


@pytest.mark.parametrize(
    ("fields", "done", "expected"),
    [
        ({}, 0, [6, 12, 18, 20]),
        ({}, 7, [13, 19, 20]),
        ({}, 20, []),
        ({"steps_per_call": 50}, 0, [20]),
        ({"log_every": 5}, 0, [5, 10, 15, 20]),
        ({"log_every": 5}, 4, [5, 10, 15, 20]),
        ({"log_every": 8, "eval_every": 10}, 0, [6, 8, 10, 16, 20]),
        ({"save_every": 7, "steps_per_call": 50}, 0, [7, 14, 20]),
        ({"last_step": 9}, 0, [6, 9]),
        ({"profile": (2, 4)}, 0, [2, 4, 10, 16, 20]),
        ({"steps_per_call": 1, "num_steps": 3, "last_step": 3}, 0, [1, 2, 3]),
    ],
)
def test_dispatches_end_where_something_else_happens(fields, done, expected):
    assert ends(plan(**fields), done) == expected


def test_last_step_is_evaluated_and_where_a_start_ends_is_saved():
    stopped = plan(num_steps=20, last_step=9, eval_every=8, save_every=5)
    assert [step for step in range(1, 21) if stopped.evaluates_after(step)] == [8, 16, 20]
    assert [step for step in range(1, 10) if stopped.saves_after(step)] == [5, 8, 9]


def test_plan_follows_from_the_config():
    config = digits_config(**{"train.epochs": 2.0, "train.eval_every_epochs": 0.5, "train.log_every_steps": 5})
    made = make_plan(config, 22, 7, stop_at=30, profile=(2, 4))
    assert made == Plan(44, 30, 5, 11, 44, 7, (2, 4))
    assert make_plan(config, 22, 1).last_step == 44
