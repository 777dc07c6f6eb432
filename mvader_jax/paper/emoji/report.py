"""What the numbers of one or two runs say: the goals beside what was reached, and the paper's question answered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.paper.emoji.methods import METHODS, best, named, right
from mvader_jax.paper.emoji.tasks import ASKED, PARTS

Numbers = Mapping[str, Any]
#: What must be the same in runs that stand side by side.
_SAME = ("count", "subjects", "prompts", "steps", "sampler", "guidance_scale")


def read_numbers(path: Path) -> dict[str, Any]:
    """What `mvader evaluate --world emoji --out` wrote. Raises UserError for anything else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result["settings"]["prompts"], str) and result.keys() <= {"settings", *PARTS}:
            return dict(result)
    except (OSError, ValueError, TypeError, LookupError):
        pass
    raise UserError(f"{str(path)!r} holds no numbers of mvader evaluate --world emoji --out")


@dataclasses.dataclass(frozen=True)
class Goal:
    """A line of the table. reached: percent, of a run that has it. goal: None where it is only reported.
    after: what must be reached before it: next to nothing is soon within ten points of next to nothing."""

    task: str
    reached: Callable[[Numbers], float | None]
    goal: float | None = None
    after: Goal | None = None

    def met(self, run: Numbers) -> bool:
        value = self.reached(run)
        if self.after is not None and not self.after.met(run):
            return False
        return value is not None and self.goal is not None and value >= self.goal


def _prompt(part: str, score: str) -> Callable[[Numbers], float | None]:
    """The prompt itself, every weight 1."""
    return lambda run: next((100 * row[score] for row in run.get(part, ()) if _itself(row)), None)


def _itself(row: Mapping[str, Any]) -> bool:
    return row["method"] in ("autoencoder", "pictures") or (row["method"] == "prompt" and row["theta"] == 1.0)


def _best(part: str, method: str) -> Callable[[Numbers], float | None]:
    def reached(run: Numbers) -> float | None:
        row = best(run.get(part, ()), method)
        return None if row is None else 100 * row["exact_1"]

    return reached


def _beside_english(language: str) -> Callable[[Numbers], float | None]:
    def reached(run: Numbers) -> float | None:
        own, english = _prompt(f"told-{language}", "exact_1")(run), _prompt("told", "exact_1")(run)
        return None if own is None or english is None else own - english

    return reached


_LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
_UNSEEN = "style-unseen-pair"
_TOLD = Goal("told, seen pair, exact", _prompt("told", "exact_1"), 95)
GOALS = (
    Goal("the autoencoder's reconstructions, exact", _prompt("reconstruction", "exact_1"), 99),
    _TOLD,
    Goal("told, unseen pair, subject", _prompt("told-unseen-pair", "subject_1"), 75),
    Goal("told, unseen pair, style", _prompt("told-unseen-pair", "style_1"), 80),
    Goal("told, unseen subject, exact", _prompt("told-unseen-subject", "exact_1")),
    Goal("shown, seen subject, exact", _prompt("shown", "exact_1"), 90),
    Goal("style change, unseen pair, exact", _prompt(_UNSEEN, "exact_1"), 75),
    Goal("the same at the best theta and site", _best(_UNSEEN, "prompt")),
    Goal("the same, theta adjusted as it samples", _best(_UNSEEN, "balance-attention")),
    Goal("the same by img2img at its best strength", _best(_UNSEEN, "img2img")),
    Goal("the same by img2img, the right answer told", _best(_UNSEEN, "img2img-told")),
    Goal("two pictures, both subjects found", _prompt("both", "both"), 80),
    *(
        Goal(f"{name} against English, told, exact, points", _beside_english(code), -10, _TOLD)
        for code, name in _LANGUAGES.items()
    ),
)


def report(runs: Mapping[str, Numbers]) -> str:
    """Markdown: the goals, methods that change a style, and the answer. runs: by name, the paper's training first.

    Raises UserError where their prompts or settings differ.
    """
    first = next(iter(runs.values()))["settings"]
    for name, run in runs.items():
        for key in [key for key in _SAME if run["settings"].get(key) != first.get(key)]:
            raise UserError(
                f"the runs do not compare: {key} is {first.get(key)} in {next(iter(runs))} and "
                f"{run['settings'].get(key)} in {name}"
            )
    each = [text for name, run in runs.items() for text in (_parts(name, run), *_curves(name, run))]
    answers = [answer(name, run) for name, run in runs.items()]
    return "\n\n".join([_goals(runs), *answers, _styles(runs), *each])


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _goals(runs: Mapping[str, Numbers]) -> str:
    def cell(goal: Goal, run: Numbers) -> str:
        value = goal.reached(run)
        if value is None:
            return ""
        text = f"{value:+.1f}" if (goal.goal or 0) < 0 else f"{value:.1f}"
        return f"**{text}**" if goal.met(run) else text

    lines = [
        [
            goal.task,
            "" if goal.goal is None else f"{goal.goal:g}",
            *(cell(goal, run) for run in runs.values()),
        ]
        for goal in GOALS
    ]
    return _table(["percent (reached: bold)", "goal", *runs], lines)


_CHANGES = {"style": "seen pair", _UNSEEN: "unseen pair", "style-unseen-subject": "unseen subject"}


def _styles(runs: Mapping[str, Numbers]) -> str:
    """Every method at its best, of those that change a style."""
    lines = []
    for name, run in runs.items():
        for method in METHODS:
            rows = [best(run.get(part, ()), method) for part in _CHANGES]
            if any(rows):
                lines.append([name, method, *(_scores(row) for row in rows)])
    head = [f"{what}: exact / subject / style, at" for what in _CHANGES.values()]
    return _table(["run", "method at its best", *head], lines)


def _parts(name: str, run: Numbers) -> str:
    """Every part by every method at its best: how often the right picture, or both subjects of two, is drawn."""
    found = {part: [best(rows, method) for method in METHODS] for part in ASKED if (rows := run.get(part))}
    return _table(
        [f"{name}: right at best, percent", *METHODS],
        [
            [part, *("" if row is None else f"{100 * right(row):.1f}" for row in rows)]
            for part, rows in found.items()
        ],
    )


def _curves(name: str, run: Numbers) -> list[str]:
    """A style's change of unseen pairs, over theta at each site, and over img2img's strength."""
    rows = run.get(_UNSEEN, ())
    said = f"{name}, unseen pair: exact / subject / style"
    first = next((row for row in rows if row["method"] == "prompt" and _itself(row)), None)
    curve = {
        (row["site"], row["theta"]): row for row in rows if row["method"] == "prompt" and row is not first
    }
    sites, thetas = (list(dict.fromkeys(key[at] for key in curve)) for at in (0, 1))
    tables = []
    if curve:
        lines = [[f"{theta:g}", *(_three(curve.get((site, theta))) for site in sites)] for theta in thetas]
        # Weights of 1 are the same at every site.
        lines = [["1", *[_three(first)] * len(sites)], *lines]
        tables.append(_table([f"{said}; theta", *(f"at {site}" for site in sites)], lines))
    by_strength: dict[float, dict[str, Any]] = {}
    for row in [row for row in rows if "strength" in row]:
        by_strength.setdefault(row["strength"], {})[row["method"]] = row
    if by_strength:
        names = list(dict.fromkeys(method for found in by_strength.values() for method in found))
        lines = [
            [f"{strength:g}", *(_three(found.get(n)) for n in names)]
            for strength, found in by_strength.items()
        ]
        tables.append(_table([f"{said}; strength", *names], lines))
    return tables


def _three(row: Mapping[str, Any] | None) -> str:
    return (
        ""
        if row is None
        else " / ".join(f"{100 * row[name]:.1f}" for name in ("exact_1", "subject_1", "style_1"))
    )


def _scores(row: Mapping[str, Any] | None) -> str:
    how = "" if row is None else named(row).partition(", ")[2]
    return ", ".join(filter(None, (_three(row), how)))


def answer(name: str, run: Numbers) -> str:
    """How much better a multimodal prompt changes a style and keeps the subject than img2img: a sentence a kind."""
    said = []
    for part, what in _CHANGES.items():
        rows = run.get(part, ())
        prompt, other = best(rows, "prompt"), best(rows, "img2img")
        if prompt is None or other is None:
            continue
        ours, theirs = 100 * prompt["exact_1"], 100 * other["exact_1"]
        ratio = f": {ours / theirs:.1f} times as often" if theirs else ""
        said.append(
            f"in {ours:.1f} % of {prompt['prompts']} {what}s (the right subject in {100 * prompt['subject_1']:.1f} %, the "
            f"right style in {100 * prompt['style_1']:.1f} %; {named(prompt).partition(', ')[2]}), img2img with the same "
            f"words at its best strength, {other['strength']:g}, in {theirs:.1f} % ({100 * other['subject_1']:.1f} %, "
            f"{100 * other['style_1']:.1f} %){ratio}"
        )
    if not said:
        return f"{name}: there are no numbers of a style's change by both prompts and img2img."
    return (
        f"{name}: asked for a picture's subject in another style, the multimodal prompt draws exactly the right picture "
        + "; ".join(said)
        + "."
    )
