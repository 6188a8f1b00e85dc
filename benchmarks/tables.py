"""Brings docs/results.md, README.md and docs/paper_to_code.md up to date with the ledger and the code.

    python -m benchmarks.tables

What stands between `<!-- ledger: NAME -->` and `<!-- end -->` in those pages is made here from results/ and from
published.py; the rest of a page is written by hand. A test fails when they differ.
"""

import itertools
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ledger, paper_models, study
from benchmarks.published import PAPER_GATES, PLAIN, TABLE_1
from benchmarks.runs import ROOT
from gaternet_jax.cli.command_line import command_line
from gaternet_jax.errors import UserError
from gaternet_jax.files import write_file

PAGES = ("docs/results.md", "README.md", "docs/paper_to_code.md")
BLOCK = re.compile(r"(?<=<!-- ledger: )(\S+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"([\d.,]+( M|%)?( ± [\d.]+ \(\d+ seeds\))?)?( ?\(\d+ diverged\))?|diverged")
SCHEDULES = tuple((recipe, epochs) for epochs in (200.0, 30.0) for recipe in ("he", "strong"))
NAMES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet164_paper": "ResNet-164", "resnet8": "ResNet-8"}
SUFFIXES = {
    "plain": "", "wider": "-Wider", "se": "-SE", "gated": "-Gated", "aux": "-Gated, auxiliary classifier",
    "local": ", gated block by block", "all": "-Gated, all convolutions", "macs50": "-Gated, 50% of the MACs",
    "lambda0.1": "-Gated, lambda 0.1, bias 0",
}  # fmt: skip
GATES = {"open": "open", "input_dependent": "input-dependent", "always_on": "always on", "always_off": "always off"}
DENSE = "MACs, gater included, of the dense backbone"
GATED = {"gated": "", "lambda0.1": ", lambda 0.1 and bias 0"}  # those of the summary
EXTRA = {("cifar10", "resnet20"): ("lambda0.1", "all", "macs50")}


class Results:
    """The ledger, as the tables ask it.

    Args:
        folder: where the entries are.
    """

    def __init__(self, folder: Path):
        self.folder, self.entries = folder, ledger.load(folder)
        findings = folder / "findings.json"
        self.findings: list[dict] = json.loads(findings.read_text(encoding="utf-8")) if findings.exists() else []

    def of(self, *model: str, epochs: float, **settings: Any) -> list[dict]:
        """Entries of a model of a study, of all seeds; arguments as of `study.one`."""
        card, backbone, kind, recipe = model
        return ledger.alike(study.one(card, backbone, kind, recipe, epochs, **settings), self.entries, self.folder)


def fill(page: str, results: Results) -> str:
    """Makes all blocks of a page anew.

    Raises:
        UserError: it names a block that does not exist.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in BLOCKS:
            raise UserError(f"unknown block '{match[1]}'; blocks are {', '.join(BLOCKS)}")
        return f"{match[1]}{match[2]}{BLOCKS[match[1]](results)}\n"

    return BLOCK.sub(block, page)


def summary(results: Results) -> str:
    """One sentence or two on gated against plain ResNet-20: the longest schedule that there is of both."""
    pixels = study.SMALL_IMAGES
    tiers: tuple[tuple[str, float, dict[str, Any]], ...] = (
        ("on CIFAR-10", 200.0, {}), ("on CIFAR-10", 30.0, {}), ("on CIFAR-10 at 16 x 16 pixels", 24.0, pixels)
    )  # fmt: skip
    sentences = []
    for data, epochs, settings in tiers:
        parts = []
        for recipe, (kind, said) in itertools.product(("he", "strong"), GATED.items()):
            plain, gated = (
                cell(results.of("cifar10", "resnet20", model, recipe, epochs=epochs, **settings))
                for model in ("plain", kind)
            )
            if plain and gated:
                parts.append(f"{gated} against {plain} (recipe `{recipe}`{said})")
        if parts:
            sentences.append(
                f"ResNet-20-Gated against ResNet-20 {data}, test error in percent after {epochs:g} epochs: "
                f"{'; '.join(parts)}."
            )
            break
    if not sentences or "200 epochs" not in sentences[0]:
        sentences.insert(0, "No full schedule of 200 epochs has been trained yet.")
    plain, gated = (TABLE_1["cifar10", "resnet20", kind][1] for kind in ("plain", "gated"))
    return " ".join([*sentences, f"The paper: ResNet-20-Gated {gated:.2f}%, ResNet-20 {plain:.2f}% on CIFAR-10."])


def table_1(card: str):
    """Makes the table of a dataset: the paper's Table 1 beside ours."""

    def block(results: Results) -> str:
        header = ["model", "parameters", "the paper's", "paper: test error %"]
        header += [f"`{recipe}`, {epochs:g} epochs" for recipe, epochs in SCHEDULES]
        rows = []
        for backbone in ("resnet20", "resnet56", "resnet164_paper"):
            for kind in (*study.MODELS, *EXTRA.get((card, backbone), ())):
                ours = [results.of(card, backbone, kind, recipe, epochs=epochs) for recipe, epochs in SCHEDULES]
                size, error = TABLE_1.get((card, backbone.removesuffix("_paper"), kind), (None, None))
                rows.append(
                    [
                        NAMES[backbone] + SUFFIXES[kind],
                        next((f"{entries[0]['parameters'] / 1e6:.2f} M" for entries in ours if entries), ""),
                        f"{size:.2f} M" if size else "",
                        f"{error:.2f}" if error else "",
                        *map(cell, ours),
                    ]
                )
        return table(header, rows)

    return block


def small_images(results: Results) -> str:
    """CIFAR-10 at 16 x 16 pixels."""
    rows = []
    for kind in ("plain", "wider", "gated", "aux"):
        entries = results.of("cifar10", "resnet20", kind, "strong", epochs=24.0, **study.SMALL_IMAGES)
        parameters = f"{entries[0]['parameters'] / 1e6:.2f} M" if entries else ""
        rows.append([f"ResNet-20{SUFFIXES[kind]}", parameters, cell(entries), *gates(entries)])
    return table(["model", "parameters", "test error %", *GATES.values(), DENSE], rows)


def plain(results: Results) -> str:
    """Other people's plain networks beside ours."""
    rows = []
    for theirs in PLAIN:
        ours = cell(results.of(theirs.dataset, theirs.backbone, "plain", theirs.recipe, epochs=200.0))
        data = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[theirs.dataset]
        rows.append([NAMES[theirs.backbone], data, theirs.source, theirs.note, f"{theirs.error:.2f}", ours,
                     f"`{theirs.recipe}`"])  # fmt: skip
    return table(["network", "data", "whose", "how", "their test error %", "ours, 200 epochs", "our recipe"], rows)


def gates(entries: list[dict]) -> list[str]:
    """Cells: the gates of some runs on average, in percent, and the MACs with them relative to the dense backbone."""
    found = [entry for entry in entries if entry["gate_statistics"]]
    if not found:
        return [""] * (len(GATES) + 1)
    means = [statistics.mean(entry["gate_statistics"][name] for entry in found) for name in GATES]
    macs = statistics.mean(entry["macs"]["with_gates"] / entry["macs"]["dense"] for entry in found)
    return [f"{100 * mean:.1f}%" for mean in (*means, macs)]


def all_gates(results: Results) -> str:
    """The gates of every gated network in the table of CIFAR-10, beside the paper's."""
    paper = [f"{100 * PAPER_GATES[name]:.1f}%" if name in PAPER_GATES else "" for name in GATES]
    rows = [["the paper's ResNet-164-Gated", "", *paper, ""]]
    for backbone in ("resnet20", "resnet56", "resnet164_paper"):
        for kind in ("gated", "aux", "local", *EXTRA.get(("cifar10", backbone), ())):
            for recipe, epochs in SCHEDULES:
                entries = results.of("cifar10", backbone, kind, recipe, epochs=epochs)
                if any(gates(entries)):
                    name = NAMES[backbone] + SUFFIXES[kind]
                    rows.append([name, f"`{recipe}`, {epochs:g} epochs", *gates(entries)])
    return table(["network", "recipe", *GATES.values(), DENSE], rows)


def device(start: dict) -> str:
    """Names what a start of a run trained on."""
    number = f"{start['devices']} x " if start["devices"] > 1 else ""
    cores = f", {start['cores']} cores" if start["device"].startswith("CPU") else ""
    return f"{number}{start['device']}{cores}"


def all_runs(results: Results) -> str:
    """Every entry, with how long it took."""
    rows = []
    for entry in results.entries:
        last = entry["starts"][-1] if entry["starts"] else {}
        commit = (last.get("commit") or "")[:7] + ("*" if last.get("dirty") else "")
        rows.append([
            f"[{entry['name'].rpartition('-')[0]}](../results/{entry['name']}.json)",
            "diverged" if entry["diverged"] else f"{entry['test_error']:.2f}",
            f"{entry['epochs']:g}", f"{entry['images_per_second']:,.0f}" if entry["images_per_second"] else "",
            f"{entry['wall_seconds'] / 60:.1f}" if entry["wall_seconds"] else "",
            ", then ".join(dict.fromkeys(device(start) for start in entry["starts"])), commit,
        ])  # fmt: skip
    return table(["run", "test error %", "epochs", "images/s", "minutes in all", "device", "commit"], rows)


def findings(results: Results) -> str:
    """What was tried to make gating win."""
    if not results.findings:
        return "Nothing yet."
    rows = [[finding["question"], finding["setting"], finding["found"]] for finding in results.findings]
    return table(["question", "measured on", "found"], rows)


BLOCKS = {
    "summary": summary,
    "cifar10": table_1("cifar10"),
    "cifar100": table_1("cifar100"),
    "cifar10-16px": small_images,
    "plain": plain,
    "gates": all_gates,
    "runs": all_runs,
    "findings": findings,
    "paper-models": paper_models.block,
}


def cell(entries: list[dict]) -> str:
    """Test error in percent: mean, standard deviation over seeds and their number; "" where there is no run."""
    errors = [entry["test_error"] for entry in entries if not entry["diverged"]]
    diverged = len(entries) - len(errors)
    parts = [f"{statistics.mean(errors):.2f}"] if errors else []
    if len(errors) > 1:
        parts.append(f"± {statistics.stdev(errors):.2f} ({len(errors)} seeds)")
    if diverged:
        parts.append(f"({diverged} diverged)")
    return " ".join(parts)


def table(header: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Markdown; columns after the first are aligned to the right where they hold numbers."""
    header, rows = list(header), list(rows)
    numbers = [all(NUMBER.fullmatch(row[i]) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if number else "---" for number in numbers], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@command_line()
def main() -> None:
    results = Results(ledger.FOLDER)
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = fill(before, results)
        if after != before:
            write_file(path, after)
        print(f"{name}: {'written' if after != before else 'up to date'}")


if __name__ == "__main__":
    main()
