"""A trace of some training steps, for TensorBoard or Perfetto."""

from pathlib import Path

import jax

from gaternet_jax.errors import UserError


def parse_steps(text: str) -> tuple[int, int]:
    """Parses "START:STOP" into (START, STOP): steps START + 1 to STOP are traced.

    Raises:
        UserError: something else.
    """
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise UserError(f"--profile={text} must be START:STOP, numbers of steps with START below STOP, e.g. 100:110")
    return int(start), int(stop)


class Profiler:
    """Traces the steps asked for into workdir/profile.

    Args:
        workdir: the run's folder.
        steps: from `parse_steps`; None for none.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._running = workdir / "profile", steps or (-1, -1), False

    def after(self, step: int) -> None:
        """Begins or ends the trace, if it is time, now that `step` steps have been started."""
        if step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif step == self._steps[1]:
            self.end()

    def end(self) -> None:
        """Ends the trace, if it is running, and says where it is."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            print(f"Trace in {self._folder}: tensorboard --logdir {self._folder}, or ui.perfetto.dev", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
