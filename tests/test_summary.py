"""What objects say of themselves: few lines, the right numbers, no dump of a tensor; HTML, balanced and escaped."""

import math
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import diffeo
from cases import CASES
from diffeo import objectives
from diffeo.bases import StandardNormal
from diffeo.inference.calibration import calibration_of
from diffeo.progress import View
from diffeo.summary import Curve, Summary, curves, pair
from test_flow import RECIPE_CASES, make

MOST_LINES = 6
NASTY = '<script>alert("1")</script> & co'

FLOWS = {
    **{name: lambda name=name: make(name, 5) for name in RECIPE_CASES},
    **{f"{name}-context": lambda name=name: make(name, 5, 3) for name in RECIPE_CASES},
    "glow": lambda: diffeo.glow((1, 4, 4), hidden=(4,)),
    "realnvp-image": lambda: diffeo.realnvp((1, 4, 4), hidden=(4,)),
    "wavenet": lambda: diffeo.wavenet(12, channels=4),
    "parallel_wavenet": lambda: diffeo.parallel_wavenet(12, channels=4),
    "flow_matching": lambda: diffeo.flow_matching(3, hidden=(8,)),
    "mixed": lambda: diffeo.recipes.mixed(3, hidden=(8,)),
    "vae": lambda: diffeo.vae((1, 8, 8), latent=2, width=8, channels=(4,), hidden=(8,)),
    "by hand": lambda: diffeo.Flow(StandardNormal(2), diffeo.transforms.Elementwise("affine", 2)),
    "on a simplex": lambda: diffeo.maf(2, hidden=(8,)).with_support(diffeo.transforms.Simplex(3)),
    "embedded": lambda: diffeo.maf(2, context=4, hidden=(8,)).with_embedding(torch.nn.Flatten(), (2, 2)),
    "mixture": lambda: diffeo.Mixture([diffeo.maf(2, hidden=(8,)) for _ in range(30)]),
    "of unlike members": lambda: diffeo.Mixture([diffeo.maf(2, hidden=(8 + k,)) for k in range(30)], range(30)),
}
VOID = {"line", "circle", "polyline", "br"}


class Checked(HTMLParser):
    """HTML whose tags have to be balanced; what is text in it, and all its tags."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.tags, self.points = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.tags.append(tag)
        if tag == "polyline":
            pairs = dict(attrs)["points"].split()
            self.points.append([tuple(map(float, each.split(","))) for each in pairs])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def history(losses, val_losses=None):
    val_losses = [math.nan] * len(losses) if val_losses is None else val_losses
    return [
        {"epoch": k + 1, "loss": loss, "val_loss": val, "val_stderr": 0.01}
        for k, (loss, val) in enumerate(zip(losses, val_losses, strict=True))
    ]


# ---- Flows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_says_what_it_is_in_few_lines(name):
    flow = FLOWS[name]()
    text = repr(flow)
    assert len(text.splitlines()) <= MOST_LINES
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert f" {count:,} parameters" in text
    features = flow.event_shape
    assert (f" {features[0]} features" if len(features) == 1 else f" events of shape {tuple(features)}") in text
    assert (" given a context of " in text) == bool(flow.context_shape)
    assert flow.recipe is None or f": {flow.recipe['name']}, " in text
    fast = re.fullmatch(r"  fast +(\w.*?)(; .*)?", text.splitlines()[-1])[1]
    assert fast == (", ".join(sorted(flow.fast)) or "neither log_prob nor sample")
    assert "tensor" not in text


def test_the_way_from_noise_to_data_is_in_the_order_of_generation():
    flow = diffeo.iaf(3, context=2, transforms=3, hidden=(8,), univariate=["spline", "affine"], preprocess=["whiten"])
    assert repr(flow).splitlines()[1].split("  ")[-1] == (
        "StandardNormal → 3 Inverse Autoregressive(RationalQuadraticSpline + Affine), 2 Inverse Permutation → Whiten"
    )


def test_where_a_flow_computes_if_not_as_usual():
    flow = diffeo.maf(2, hidden=(8,))
    assert "float" not in repr(flow)
    assert repr(flow.double()).splitlines()[0].endswith("in float64")


def test_a_solver_of_few_steps_has_samples_alone():
    flow = diffeo.flow_matching(2, hidden=(8,)).with_ode(solver="euler", steps=2)
    assert repr(flow).endswith("; samples alone")


def test_members_of_a_mixture_are_named_with_their_weights():
    members = [diffeo.maf(2, hidden=(8,)), diffeo.nsf(2, hidden=(8,)), diffeo.iaf(2, hidden=(8,))]
    text = repr(diffeo.Mixture(members, [0.75, 0.246, 0.004]))
    assert "0.75 maf, 0.25 nsf, 1 of less than 0.01" in text
    assert "2 x (0.75 maf" in repr(diffeo.Mixture([diffeo.Mixture(members, [0.75, 0.246, 0.004])] * 2))


@pytest.mark.parametrize("name", CASES)
def test_a_transform_says_what_it_was_made_from(name):
    transform = CASES[name].make()
    text = repr(transform)
    assert text.startswith(type(transform).__name__)
    assert "<diffeo" not in text
    assert "Parameter containing" not in text
    assert max(map(len, text.splitlines())) <= 330


def test_the_tree_of_the_layers_is_that_of_the_transform():
    flow = diffeo.maf(3, transforms=2, hidden=(8,))
    tree = repr(flow.transform)
    assert tree.count("Autoregressive(") == 2
    assert "features=3" in tree
    assert "out_features=8" in tree
    assert "event_shape=(3,)" in tree
    assert repr(diffeo.transforms.Permutation.random(64, seed=1)) == "Permutation(order=<shape (64,)>, event_dim=1)"


@pytest.mark.parametrize(
    ("make_objective", "settings"),
    [
        (diffeo.MaximumLikelihood, ""),
        (lambda flow: diffeo.Distillation(flow, diffeo.maf(2, hidden=(8,)), forward_share=0.25), "forward_share=0.25"),
        (lambda flow: objectives.ReverseKL(flow, lambda x: -x.square().sum(-1), tempering=7), "tempering=7"),
    ],
)
def test_objectives_say_their_settings_and_their_flows(make_objective, settings):
    objective = make_objective(diffeo.iaf(2, hidden=(8,), preprocess=()))
    text = repr(objective)
    assert text.startswith(type(objective).__name__)
    assert settings in text
    assert "Flow of 2 features: iaf" in text
    assert len(text.splitlines()) <= 12


# ---- Results ---------------------------------------------------------------------------------------------------------


def fitted_target():
    def density(x):
        return -0.5 * x.square().sum(-1)

    flow = diffeo.nsf(2, hidden=(8,), transforms=1, preprocess=())
    return diffeo.fit_target(density, flow=flow, particles=100, steps=210, batch_size=16, samples=300)


def learned_posterior():
    theta = torch.randn(60, 2)
    return diffeo.posterior(theta, theta + 0.1, folds=1, epochs=1, names=["mass", NASTY])


def judged():
    random = np.random.default_rng(0)
    return calibration_of(random.random((50, 2)), random.random((20, 50, 2)), ["mass", NASTY])


MAKE = {
    "training": lambda: diffeo.fit(diffeo.maf(2, hidden=(8,)), torch.randn(120, 2), epochs=30, patience=2, lr=0.3),
    "folds": lambda: diffeo.fit_folds(
        diffeo.maf(2, hidden=(8,)), torch.randn(120, 2), folds=2, epochs=2, jobs=1, families=["gaussian", "broad"]
    ),
    "target": fitted_target,
    "points": lambda: result("target").annealed,
    "weighed": lambda: result("target").importance,
    "posterior": learned_posterior,
    "calibration": judged,
    "bound": lambda: FLOWS["vae"]().bound(torch.randint(0, 255, (9, 1, 8, 8)).float(), 4),
}


@cache
def result(name):
    """A result of this kind, small."""
    torch.manual_seed(0)
    return MAKE[name]()


@pytest.mark.parametrize("name", MAKE)
def test_results_say_what_is_to_be_known_in_few_lines(name):
    lines = repr(result(name)).splitlines()
    assert len([line for line in lines if "note:" not in line]) <= MOST_LINES
    assert "tensor" not in repr(result(name))
    assert "array" not in repr(result(name))


@pytest.mark.parametrize("name", [name for name in MAKE if name != "points"])
def test_results_as_html_are_balanced_and_escaped(name):
    html = result(name)._repr_html_()
    page = Checked(html)
    assert "script" not in page.tags
    assert (NASTY in "".join(page.text)) == (name in ("posterior", "calibration"))
    assert ("svg" in page.tags) == (name in ("training", "folds", "target"))
    assert not re.search(r"[^-]color:(?!inherit)", html), "text has the colour of what is around it"


def test_a_training_says_its_loss_its_time_and_why_it_ended():
    training = result("training")
    best = training.history[training.best_epoch - 1]
    text = repr(training)
    assert pair(training.best_loss, best["val_stderr"]) in text
    assert f"in epoch {training.best_epoch}" in text
    assert f"{training.epochs} epochs, {training.steps} steps, {training.seconds:.1f} s" in text
    assert training.stopped == "patience"
    assert "early stopping" in text


def test_folds_say_the_likelihood_out_of_fold_and_the_weights():
    folds = result("folds")
    text = repr(folds)
    mean, error = folds.log_prob.mean().item(), folds.log_prob.std().item() / math.sqrt(120)
    assert f"out of fold {pair(mean, error)} nats" in text
    heaviest = max(folds.weights, key=folds.weights.get)
    assert f"weights  {heaviest} {folds.weights[heaviest]:.2g}" in text
    assert "120 in 2 folds" in text


def test_a_training_without_an_epoch_says_so():
    training = diffeo.training.FitResult([], 0, math.inf, 0, 3, 0, 0.1, "interrupted")
    assert "no epoch" in repr(training)
    assert "interrupted" in repr(training)
    Checked(training._repr_html_())


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(1.23456, 0.0321, "1.235 ± 0.032"), (1.23456, math.nan, "1.235"), (math.inf, 1.0, "inf"),
     (-512.3, 14.2, "-512 ± 14"), (3.0, 0.0, "3")],
)  # fmt: skip
def test_an_error_decides_the_digits(value, error, text):
    assert pair(value, error) == text


# ---- HTML ------------------------------------------------------------------------------------------------------------


def test_all_of_a_summary_is_escaped():
    page = Checked(Summary(NASTY, {NASTY: NASTY}, [NASTY]).html())
    assert "script" not in page.tags
    assert "".join(page.text).count(NASTY) == 4
    page = Checked(View(NASTY, 0.5, [NASTY])._repr_html_())
    assert "script" not in page.tags


def test_a_curve_is_plotted_within_its_picture():
    curve = Curve.of(history([9.0, 5.0, 4.0, 3.5], [9.5, 5.5, 4.2, 4.0]))
    page = Checked(curves([curve]))
    assert page.tags.count("polyline") == 2
    assert page.tags.count("circle") == 1
    for line in page.points:
        assert len(line) == 4
        across, down = zip(*line, strict=True)
        assert list(across) == sorted(across)
        assert list(down) == sorted(down), "losses that fall are lower on the page"


def test_a_long_curve_has_few_points_and_keeps_its_last():
    losses = list(np.linspace(2, 1, 5001))
    page = Checked(curves([Curve.of(history(losses))]))
    (line,) = page.points
    assert len(line) <= 200
    assert line[-1][0] == max(x for x, _ in line)
    short = Checked(curves([Curve.of(history(losses[:2] + losses[-1:]))])).points[0]
    assert line[-1] == short[-1], "the last epoch is at the right end"


def test_a_curve_is_cut_where_a_loss_is_not_finite():
    page = Checked(curves([Curve.of(history([3.0, 2.0, math.nan, 1.5, math.inf, 1.0]))]))
    assert [len(line) for line in page.points] == [2, 1, 1]


@pytest.mark.parametrize("losses", [[], [1.0], [math.nan, math.nan]])
def test_there_is_no_curve_of_nothing(losses):
    assert curves([Curve.of(history(losses))]) == ""


def test_a_curve_that_does_not_move_is_plotted():
    assert len(Checked(curves([Curve.of(history([1.0, 1.0, 1.0]))])).points[0]) == 3
