"""The table of a comparison: means over seeds, paired differences over cases, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SFRCore.comparison.plan import RESULTS, Row
from SFRCore.errors import SFRError
from SFRCore.runtime.files import read_json, write_json, write_text
from SFRCore.study import Study

TABLE = "table.json"
MEASURES = {
    "dice": "Dice (%)",
    "jaccard": "Jaccard (%)",
    "hd95": "95HD (voxels)",
    "asd": "ASD (voxels)",
}
DISTANCES = ("hd95", "asd")
RESAMPLES = 10_000
FEWEST_CASES = 6
"""Below this many cases a signed-rank test cannot become significant, nor an interval be trusted."""


@dataclass(frozen=True)
class Comparison:
    """A comparison as it stands: ``lines``, one a row, of plain values, and what was scored."""

    name: str
    base: str
    lines: list[dict[str, Any]]
    scored: str

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "base": self.base, "scored": self.scored, "rows": self.lines}

    def heads(self) -> list[str]:
        """The heads of the table's columns."""
        return ["Method", *MEASURES.values(), f"Difference in Dice to {self.base}", "p", "Seeds"]

    def cells(self, line: Mapping[str, Any]) -> list[str]:
        """The texts of a line; a dagger where distances are missing from a mean."""
        cells = [str(line["row"])]
        for measure in MEASURES:
            factor = 100 if measure in ("dice", "jaccard") else 1
            text = with_deviation(line[measure], line[f"{measure}_std"], factor)
            cells.append(text + " †" if measure in DISTANCES and line.get("undefined_distances") else text)
        seeds = "left out" if line.get("left_out") and not line["seeds"] else str(len(line["seeds"]))
        return [*cells, difference_text(line), p_text(line), seeds]

    def notes(self) -> list[str]:
        """What stands beneath the table: distances that are missing, rows that could not be trained."""
        missing = [
            f"{line['row']} {line['undefined_distances']} of {line['distances']}"
            for line in self.lines
            if line.get("undefined_distances")
        ]
        notes = []
        if missing:
            notes.append(
                "† Where the prediction or the reference lacks a structure there is no distance, and the "
                f"mean leaves it out; do not take it for a better one: {', '.join(missing)}."
            )
        notes += [
            f"{line['row']} could not be trained: {line['left_out']}"
            for line in self.lines
            if line.get("left_out")
        ]
        return notes


def tabulate(
    folder: Path,
    rows: Sequence[Row],
    seeds: Sequence[int],
    base: Row,
    scored: str,
    left_out: Mapping[str, str] | None = None,
) -> Comparison:
    """The table from the results that are there; ``left_out`` says by key why a row could not be trained.

    Of every row: mean and standard deviation over seeds of each measure (the mean over structures of the
    mean over cases), and the paired difference of Dice to ``base``: every case's mean over the seeds that
    both rows have, with a 95 % bootstrap interval over the cases and the p-value of Wilcoxon's signed-rank
    test (both None below six cases).
    """
    results = {row: _results(folder, row, seeds) for row in rows}
    lines = []
    for row in rows:
        done = results[row]
        line: dict[str, Any] = {"row": row.title, "recipe": row.recipe, "ssl": row.ssl, "seeds": sorted(done)}
        for measure in MEASURES:
            values = [_mean_of(result["scores"], measure) for result in done.values()]
            known = np.array([value for value in values if value is not None], dtype=float)
            line[measure] = float(known.mean()) if known.size else None
            line[f"{measure}_std"] = float(known.std(ddof=1)) if known.size > 1 else None
            line[f"{measure}_by_seed"] = values
        structures = [means for one in done.values() for means in one["scores"]["structures"].values()]
        line["undefined_distances"] = sum(means.get("undefined_distances", 0) for means in structures)
        line["distances"] = sum(means.get("cases", 0) for means in structures)
        line["minutes"] = _minutes(done, list(results.values()))
        if left_out and row.key in left_out:
            line["left_out"] = left_out[row.key]
        line |= _difference(done, results[base]) if row != base else {}
        lines.append(line)
    return Comparison(folder.name, base.title, lines, scored)


def _minutes(done: Mapping[int, Any], rows: Sequence[Mapping[int, Any]]) -> float | None:
    """Of a training, with the stages that it shares with other rows of its seed, whichever row ran them."""
    if not done:
        return None
    seconds = []
    for seed, result in done.items():
        own = result.get("shared_seconds", {})
        others = [row[seed].get("shared_seconds", {}) for row in rows if seed in row]
        shared = sum(max(other.get(stage, 0.0) for other in others) for stage in own)
        seconds.append(result["seconds"] - sum(own.values()) + shared)
    return float(np.mean(seconds)) / 60


def write_tables(folder: Path, comparison: Comparison, rows: Sequence[Row]) -> None:
    """``table.md``, ``table.csv``, ``cases.csv`` (a line a row, seed, case and structure), ``table.json``."""
    write_text(folder / "table.md", markdown(comparison))
    write_text(folder / "table.csv", _csv(comparison.lines))
    write_text(folder / "cases.csv", _csv(list(_by_case(folder, rows))))
    write_json(folder / TABLE, comparison.to_dict())


def read_comparisons(study: Study) -> list[Comparison]:
    """The comparisons of a study that have a table, by name; a damaged one is passed over."""
    found = []
    for path in sorted(study.root.glob(f"comparisons/*/{TABLE}")):
        try:
            table = read_json(path)
            found.append(
                Comparison(path.parent.name, str(table["base"]), list(table["rows"]), str(table["scored"]))
            )
        except (SFRError, KeyError, TypeError):
            continue
    return found


def markdown(comparison: Comparison) -> str:
    """The table for people: Dice and Jaccard in %, distances in voxels."""
    heads = comparison.heads()
    lines = [f"Scored: {comparison.scored}. Mean ± standard deviation over seeds.", ""]
    lines.append("| " + " | ".join(heads) + " |")
    lines.append("|---|" + "---|" * (len(heads) - 1))
    lines += ["| " + " | ".join(comparison.cells(line)) + " |" for line in comparison.lines]
    lines += [text for note in comparison.notes() for text in ("", note)]
    return "\n".join(lines) + "\n"


def with_deviation(mean: float | None, deviation: float | None, factor: float = 1.0) -> str:
    """ "86.03 ± 0.41", without the deviation where there is one seed, "–" where there is none."""
    if mean is None or not math.isfinite(mean):
        return "–"
    text = f"{factor * mean:.2f}"
    return text if deviation is None else f"{text} ± {factor * deviation:.2f}"


def difference_text(line: Mapping[str, Any]) -> str:
    """ "+1.20 [+0.31, +2.05]" in percent points, or "–"."""
    if line.get("difference") is None:
        return "–"
    found = line["difference_interval"]
    interval = f" [{100 * found[0]:+.2f}, {100 * found[1]:+.2f}]" if found and found[0] < found[1] else ""
    return f"{100 * line['difference']:+.2f}{interval}"


def p_text(line: Mapping[str, Any]) -> str:
    """The p-value with three decimals, or "–"."""
    p = line.get("p")
    return "–" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def _results(folder: Path, row: Row, seeds: Sequence[int]) -> dict[int, Any]:
    found = {}
    for seed in seeds:
        path = result_path(folder, row, seed)
        if path.is_file():
            found[seed] = read_json(path)
    return found


def result_path(folder: Path, row: Row, seed: int) -> Path:
    return folder / RESULTS / f"{row.key}-{seed}.json"


def _mean_of(scores: Mapping[str, Any], measure: str) -> float | None:
    values = [means[measure] for means in scores["structures"].values() if means[measure] is not None]
    return float(np.mean(values)) if values else None


def _difference(done: Mapping[int, Any], base: Mapping[int, Any]) -> dict[str, Any]:
    common = sorted(set(done) & set(base))
    first, second = _dice_by_case(done, common), _dice_by_case(base, common)
    cases = sorted(set(first) & set(second))
    if not cases:
        return {"difference": None, "difference_interval": None, "p": None}
    differences = np.array([first[case] - second[case] for case in cases])
    drawn = np.random.default_rng(0).integers(len(cases), size=(RESAMPLES, len(cases)))
    low, high = np.quantile(differences[drawn].mean(1), (0.025, 0.975))
    return {
        "difference": float(differences.mean()),
        "difference_interval": [float(low), float(high)] if len(cases) >= FEWEST_CASES else None,
        "p": _signed_rank(differences),
    }


def _signed_rank(differences: NDArray[np.float64]) -> float | None:
    from scipy.stats import wilcoxon

    if len(differences) < FEWEST_CASES or not differences.any():
        return None
    return float(wilcoxon(differences).pvalue)


def _dice_by_case(results: Mapping[int, Any], seeds: Sequence[int]) -> dict[str, float]:
    """Of every case that all seeds scored: its mean Dice over structures and seeds."""
    values: dict[str, list[float]] = {}
    for seed in seeds:
        for case, entry in results[seed]["scores"]["cases"].items():
            known = [one["dice"] for one in entry["structures"].values() if one["dice"] is not None]
            if known:
                values.setdefault(case, []).append(float(np.mean(known)))
    return {case: float(np.mean(each)) for case, each in values.items() if len(each) == len(seeds)}


def seeds_of(folder: Path, row: Row) -> list[int]:
    """The seeds of which the row has a result."""
    names = (path.name for path in (folder / RESULTS).glob(f"{row.key}-*.json"))
    matches = (re.fullmatch(rf"{re.escape(row.key)}-(\d+)\.json", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def _by_case(folder: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"recipe": row.recipe, "ssl": row.ssl, "seed": seed, "case": case, "structure": structure, **scores}
        for row in rows
        for seed, result in _results(folder, row, seeds_of(folder, row)).items()
        for case, entry in result["scores"]["cases"].items()
        for structure, scores in entry["structures"].items()
    ]


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _cell(value) for name, value in line.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ";".join("" if item is None else str(item) for item in value)
    return "" if value is None else value
