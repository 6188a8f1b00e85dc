"""One process of a small run, for tests: WORKDIR DEVICES STOP_AT FIELDS [COORDINATOR NUM_PROCESSES PROCESS_ID].

FIELDS is JSON, of config fields.
"""

import json
import sys

import jax

from gaternet_jax.training import processes as distributed
from gaternet_jax.training.loop import train
from tests.helpers import digits_config


def main(workdir, devices, stop_at, fields, coordinator=None, num_processes=None, process_id=None):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    if coordinator:
        distributed.initialize(coordinator, int(num_processes), int(process_id))
    print(train(digits_config(**json.loads(fields)), workdir, stop_at=int(stop_at) or None)["step"], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
