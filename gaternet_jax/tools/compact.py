"""Fixes the gates of a trained model that never open, so that inference and export leave their filters out.

    python -m gaternet_jax.tools.compact --workdir=runs/cifar10 --out=runs/cifar10-compact

Calibrates on the run's training split, and tells on its evaluation split how often the compacted model is only an
approximation. The result is a folder like a run's: load_model, tools.predict, tools.export and --mode=evaluate take it.
The checkpoint has all parameters, for training further; what tools.export writes of it has those that are left.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from gaternet_jax.cli.command_line import command_line, positive
from gaternet_jax.files import write_file
from gaternet_jax.paths import expand_arguments, quote


def compact(workdir: Path, out: Path, *, images: int, held_out: int, data_dir: str = "") -> dict:
    """Writes the compacted model and compaction_report.json to `out`.

    Args:
        workdir: of a training run or a conversion.
        out: a new or empty folder.
        images: of the training split, for calibration.
        held_out: of the evaluation split, to compare.
        data_dir: of prepared datasets; "": as in the run.

    Returns:
        The report.

    Raises:
        UserError: a model without gates, no data, or `out` is not empty.
    """
    from gaternet_jax.inference.calibration import read_split
    from gaternet_jax.inference.compaction import check_gated, compact_model, departures
    from gaternet_jax.inference.predictor import Predictor
    from gaternet_jax.models.functional import split_model
    from gaternet_jax.training.checkpoint import Checkpoints, load_model
    from gaternet_jax.workdir import check_new_folder, load_config, load_dataset, load_labels, save_config, save_dataset

    check_new_folder(out)
    config = load_config(workdir)
    if data_dir:
        config.data.data_dir = data_dir
    names, model, data = load_labels(workdir), load_model(workdir, tell=True), config.data
    check_gated(model)
    print(f"Calibrating on {images:,} images of {data.name}/{data.train_split} ...", flush=True)
    seen, _ = read_split(workdir, config, data.train_split, images)
    predictor = functools.partial(Predictor, mode="dense", batch_sizes=(100,), data=data, tune=False)
    whole = predictor(model)
    compacted = compact_model(model, whole(seen).gates)
    print(f"Comparing on {data.name}/{data.eval_split} ...", flush=True)
    unseen, labels = read_split(workdir, config, data.eval_split, held_out)
    before, after = whole(unseen), predictor(compacted)(unseen)
    left = departures(before.gates, compacted)
    difference = np.abs(before.logits - after.logits).max(1)
    report = compare(model, compacted, data.image_size) | {
        "calibration_images": len(seen),
        "held_out_images": len(unseen),
        "held_out_departures": int(left.sum()),
        "held_out_top1": [float((found.logits.argmax(1) == labels).mean()) for found in (before, after)],
        "largest_difference_of_logits": {
            "gates as calibrated": float(difference[~left].max(initial=0)),
            "departures": float(difference[left].max(initial=0)),
        },
    }
    save_config(config, names, out)
    with Checkpoints(out) as checkpoints:
        checkpoints.save_model(*split_model(compacted)[1:])
    save_dataset(load_dataset(workdir), out)
    write_file(out / "compaction_report.json", json.dumps(report, indent=2) + "\n")
    return report


def compare(model: Any, compacted: Any, image_size: int) -> dict:
    """Tells what went: parameters that inference needs, macs, and filters by site."""
    import jax
    import jax.numpy as jnp

    from gaternet_jax.inference.compaction import fixed_gates
    from gaternet_jax.inference.network import Network
    from gaternet_jax.models.mac_counter import MacCounter

    (closed, opened), counter = fixed_gates(compacted), MacCounter(model, image_size)
    parameters, sites = [], {}
    for each in (model, compacted):
        arrays = jax.eval_shape(functools.partial(Network(each, image_size, "xla").prepare, "whole")).arrays
        parameters.append(sum(array.size for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)))
    for site in model.gate_sites:
        kept, always_open = int((~closed[site.gates]).sum()), int(opened[site.gates].sum())
        sites[site.name] = {"filters": site.size, "kept": kept, "always_open": always_open}
    return {
        "parameters": parameters,
        "macs_backbone": [counter.dense, int(counter.count(jnp.asarray(~closed[None], jnp.float32))[0])],
        "filters": [closed.size, int((~closed).sum()), int(opened.sum())],
        "sites": sites,
    }


def describe(report: dict) -> str:
    """Puts the report in words, for people."""
    filters, kept, always = report["filters"]

    def change(name: str) -> str:
        before, after = report[name]
        return f"{before:,} -> {after:,} ({after / before:.1%})" if before else "none"

    left, images = report["held_out_departures"], report["held_out_images"]
    before, after = report["held_out_top1"]
    return "\n".join(
        [
            f"Gated filters    {filters:,}: {filters - kept:,} removed, {kept:,} stay, {always:,} of them without gate",
            f"Parameters used  {change('parameters')}",
            f"Backbone MACs    {change('macs_backbone')}",
            f"Held-out images  {left:,} of {images:,} ({left / images:.2%}) have gates that calibration never saw: "
            "there the compacted model is an approximation",
            f"Held-out top-1   {before:.2%} -> {after:.2%}",
        ]
    )


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run or a conversion")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--images", type=positive, default=5000, help="for calibration (default: 5000)")
    parser.add_argument("--held_out", type=positive, default=10000, help="to compare on (default: 10000)")
    parser.add_argument("--data_dir", default="", help="folder of prepared datasets (default: the run's)")
    arguments = parser.parse_args(expand_arguments(argv))
    report = compact(
        arguments.workdir,
        arguments.out,
        images=arguments.images,
        held_out=arguments.held_out,
        data_dir=arguments.data_dir,
    )
    print(describe(report))
    print(f"Next: python -m gaternet_jax.main --workdir={quote(arguments.out)} --mode=evaluate")


if __name__ == "__main__":
    main()
