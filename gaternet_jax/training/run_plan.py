"""What happens after which step: pure functions of the step, so that a resumed run does what any other does."""

import dataclasses
from collections.abc import Iterator

from gaternet_jax.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says how many steps a run has, and after which it logs, evaluates and saves.

    Attributes:
        num_steps: of the whole run.
        last_step: of this start; less than `num_steps` if it is to end earlier.
        log_every: training metrics are means over this many steps.
        eval_every: steps from one evaluation to the next; a checkpoint follows each.
        save_every: steps from one checkpoint to the next.
        steps_per_call: steps in one dispatch, at most.
        profile: the trace begins after the first of these steps and ends after the second; empty for none.
    """

    num_steps: int
    last_step: int
    log_every: int
    eval_every: int
    save_every: int
    steps_per_call: int
    profile: tuple[int, ...] = ()

    def evaluates_after(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.num_steps

    def saves_after(self, step: int) -> bool:
        return self.evaluates_after(step) or step % self.save_every == 0 or step == self.last_step

    def calls(self, done: int) -> Iterator[int]:
        """Yields how many steps each dispatch runs, from step `done` on.

        A dispatch ends where something else happens; it is shorter there.
        """
        while done < self.last_step:
            ends = [done - done % every + every for every in (self.log_every, self.eval_every, self.save_every)]
            ends += [step for step in self.profile if step > done]
            end = min(done + self.steps_per_call, self.last_step, *ends)
            yield end - done
            done = end


def make_plan(
    config: RunConfig,
    steps_per_epoch: int,
    steps_per_call: int,
    *,
    stop_at: int | None = None,
    profile: tuple[int, int] | None = None,
) -> Plan:
    """Plans a run.

    Args:
        config: the whole config of the run.
        steps_per_epoch: whole batches in an epoch.
        steps_per_call: from `choose_steps_per_call`.
        stop_at: this start ends after that step.
        profile: from `parse_steps`.
    """
    num_steps = max(round(config.train.epochs * steps_per_epoch), 1)
    return Plan(
        num_steps,
        last_step=min(num_steps, stop_at or num_steps),
        log_every=config.train.log_every_steps,
        eval_every=max(round(config.train.eval_every_epochs * steps_per_epoch), 1),
        save_every=config.checkpoint.every_steps or num_steps,
        steps_per_call=steps_per_call,
        profile=profile or (),
    )
