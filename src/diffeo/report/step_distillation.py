"""What a student of few steps loses against its teacher: distances by the number of steps, straightness, speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffeo.errors import UserError
from diffeo.flow import Flow, expect_ode
from diffeo.report.compare import classifier_test
from diffeo.report.style import MODEL, OTHER, REAL, figure
from diffeo.report.transport import in_steps, squared_wasserstein, straightness
from diffeo.training.seeding import derive, seed_noise

__all__ = ["compare_flows", "distance_curve", "pick", "sample_in", "warnings"]

STEPS = (1, 2, 4, 8)

# A student is far from its teacher beyond so much of the variance of the teacher's draws, if that is more than so many
# standard deviations of the distance between two sets of the teacher's own.
FAR = 0.01
CHANCE = 4.0
DISTINCT = 0.6  # AUC beyond which a classifier tells them apart, two standard errors being granted

COLOURS = {"teacher": REAL, "reflowed": OTHER, "student": MODEL}


@torch.no_grad()
def compare_flows(flows: Mapping[str, Flow], contexts: Tensor | None, rows: int, seed: int) -> dict[str, Any]:
    """Compare a continuous flow, "teacher", with those made of it, the "student" among them.

    Distances are squared 2-Wasserstein distances, in the units of the layers, of sets of rows joined with their
    contexts. Two sets of one distribution are a distance apart too, the larger the more elements there are, and a set
    that has shrunk to its mean is nearer to the teacher's than these are to each other. So what two sets of the
    teacher, and two of the other flow, are apart on average is taken off: W(p, q) - (W(p, p') + W(q, q')) / 2 is 0 on
    average for one distribution, as the divergences of Genevay et al. 2018 are (arXiv:1706.00292).

    Args:
        flows: by name.
        contexts: to draw in, picked at random.
        rows: in a set; forty assignments of so many are solved exactly.
        seed: of all draws.

    Returns:
        Plain data: ``straightness`` of each, ``distances`` by the number of Euler steps (those beyond chance, and
        ``raw``), ``chance``, ``classifier``, ``evaluations`` per row, ``variance`` of the teacher's draws, ``rows``,
        ``dimensions``.

    Raises:
        UserError: for draws that are not finite.
    """
    teacher, student = flows["teacher"], flows["student"]

    def draws(name: str, flow: Flow, number: int) -> Tensor:
        seed_noise(flow.base.device_marker.device, derive(seed, name, number))
        x, context = sample_in(flow, contexts, rows)
        if not x.isfinite().all():
            raise UserError(f"the {name} draws values that are not finite; distil it again, with more minutes")
        condition = flow.normalize_context(context)
        return x.flatten(1) if condition is None else torch.cat([x.flatten(1), condition], 1)

    teacher_sets = [draws("teacher", teacher, number) for number in range(4)]
    distances = [squared_wasserstein(teacher_sets[i], teacher_sets[j]) for i, j in ((0, 1), (2, 3), (0, 2), (1, 3))]
    chance = {"mean": float(np.mean(distances)), "std": float(np.std(distances, ddof=1))}
    steps = expect_ode(student).steps
    counts = sorted({*STEPS, *([] if steps is None else [steps])})

    def beyond_chance(name: str, flow: Flow) -> dict[str, float]:
        sets = [draws(name, flow, number) for number in range(2)]
        raw = (squared_wasserstein(teacher_sets[0], sets[0]) + squared_wasserstein(teacher_sets[1], sets[1])) / 2
        return {"distance": raw - (chance["mean"] + squared_wasserstein(*sets)) / 2, "raw": raw}

    real, fake = torch.cat(teacher_sets[2:]), torch.cat([draws("student", student, number) for number in range(2)])
    few, few_contexts = rows // 4, pick(contexts, rows // 4)  # of paths and evaluations one tells much of the others
    return {
        "rows": rows,
        "dimensions": teacher.event_shape.numel(),
        "steps": steps,
        "straightness": {name: straightness(flow, few, few_contexts) for name, flow in flows.items()},
        "distances": {
            name: {str(count): beyond_chance(f"{name} {count}", in_steps(flow, count)) for count in counts}
            for name, flow in flows.items()
        },
        "chance": chance,
        "variance": float(real[:, : teacher.event_shape.numel()].var(0).sum()),
        "classifier": classifier_test(real.double().cpu().numpy(), fake.double().cpu().numpy(), seed),
        "evaluations": {name: _evaluations(flow, few, few_contexts) for name, flow in flows.items()},
    }


def sample_in(flow: Flow, contexts: Tensor | None, rows: int) -> tuple[Tensor, Tensor | None]:
    """Draw so many rows, each in a context picked at random."""
    context = pick(contexts, rows)
    return flow.sample((rows,) if context is None else (), context), context


def pick(contexts: Tensor | None, rows: int) -> Tensor | None:
    """Pick so many contexts at random."""
    return None if contexts is None else contexts[torch.randint(len(contexts), (rows,)).to(contexts.device)]


def _evaluations(flow: Flow, rows: int, context: Tensor | None) -> float:
    """Of the velocity, for a row on average."""
    solution = expect_ode(flow).solve(flow.base.sample((rows,)), 0.0, 1.0, flow.normalize_context(context))
    return float(solution.evaluations.double().mean())


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Say in words what a user must know before trusting the student: that it is far from its teacher."""
    texts: list[str] = []
    steps, chance, auc = report["steps"], report["chance"], report["classifier"]
    remedy = "give more minutes" + (f", or more steps than {steps}" if steps else "")
    distance = 0.0 if steps is None else report["distances"]["student"][str(steps)]["distance"]
    if distance > max(CHANCE * chance["std"], FAR * report["variance"]):
        texts.append(
            f"the student's draws are {distance:.3g} from the teacher's (squared W2, beyond chance), "
            f"{distance / report['variance']:.1%} of their variance; {remedy}"
        )
    if auc["auc"] - 2 * auc["stderr"] > DISTINCT:
        texts.append(
            f"a classifier tells the student's draws from the teacher's with AUC {auc['auc']:.2f} (0.5: it cannot); "
            f"{remedy}"
        )
    return texts


def distance_curve(report: Mapping[str, Any], path: str | Path) -> None:
    """Plot the distances from the teacher by the number of steps, beside what chance makes of none.

    Args:
        report: what ``compare_flows`` returns.
        path: of the PNG.
    """
    from matplotlib.ticker import FuncFormatter

    steps, reach = report["steps"], 2 * report["chance"]["std"]
    with figure(path, (6.4, 3.8)) as fig:
        axes = fig.add_subplot()
        axes.axhspan(-reach, reach, color="#E4E4E4", lw=0)
        for name, by_steps in report["distances"].items():
            counts, distances = [int(count) for count in by_steps], [each["distance"] for each in by_steps.values()]
            few_steps = name == "student" and steps is not None
            label = f"{name} (trained for {steps} steps)" if few_steps else name
            axes.plot(counts, distances, color=COLOURS[name], lw=1.5, marker="o", ms=3, label=label)
            if few_steps:
                axes.plot(steps, by_steps[str(steps)]["distance"], "o", color=COLOURS[name], ms=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=reach or 1e-6)
        axes.set_ylim(bottom=-1.5 * reach)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("Euler steps")
        axes.set_ylabel("squared W2 from the teacher\nbeyond chance, whose spread is grey")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)  # above, never in the way
