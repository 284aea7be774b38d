"""Flows on disk: a flow of a recipe or of one's own making comes back as it was, and no code is stored."""

import inspect
import json
import sys

import pytest
import torch
from torch import nn

import diffeo
from cases import NAMES, case, inputs, make, randomise
from diffeo import nets, structure, transforms
from diffeo.arguments import KnowsArguments
from diffeo.bases import GaussianMixture, StandardLogistic, StandardNormal
from diffeo.errors import UserError
from diffeo.objectives import Objective
from diffeo.structure import described, rebuilt

MASK = torch.tensor([True, False, True])


def chain(context=0):
    """All kinds of layers that a table may pass."""
    made = nets.MADE(3, 2, (8,), context)
    return [
        transforms.Autoregressive(transforms.Affine(2.0), made, 0.1),
        transforms.Permutation.random(3, seed=1),
        transforms.Inverse(transforms.Autoregressive(transforms.RationalQuadraticSpline(4), nets.MADE(3, 11, (8,)))),
        transforms.Coupling(transforms.Affine(3.0), MASK, nets.MLP(2, 2, (8,), context)),
        transforms.Elementwise(transforms.MixtureOfLogistics(2), (3,)),
        transforms.LU(3),
        transforms.ActNorm(3),
        transforms.Standardize(3),
    ]


class Net(nn.Module):
    def forward(self, x, context=None):
        return torch.zeros(1, *x.shape)


def by_hand(layers=None, base=None, context=0):
    return diffeo.Flow(base or StandardNormal(3), layers or chain(context), context_shape=(context,) if context else ())


FLOWS = {
    "chain": by_hand,
    "context": lambda: by_hand(context=2),
    "embedding": lambda: by_hand(context=2).with_embedding(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), (3, 4)
    ),
    "one": lambda: by_hand(transforms.Autoregressive(transforms.Affine(), nets.MADE(3, 2, (8,)))),
    "generator": lambda: by_hand(transforms.Chain(each for each in chain())),
    "logistic": lambda: by_hand(base=StandardLogistic(3)),
    "mixture": lambda: by_hand(base=GaussianMixture(3, 4)),
    "torch": lambda: by_hand(
        [transforms.Coupling(transforms.Affine(), MASK, nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.Linear(9, 2)))]
    ),
    "images": lambda: diffeo.Flow(
        StandardNormal((1, 4, 4)),
        [transforms.Squeezed(transforms.ActNorm(4, event_dim=3)), transforms.Logit((1, 4, 4), 0.0, 1.0, 0.01)],
    ),
}


def same(flow, again, tmp_path):
    z = flow.base.sample((7,))
    context = torch.randn(7, *flow.context_shape) if flow.context_shape else None
    with torch.no_grad():
        x = flow.decode(z, context)
        torch.manual_seed(3)
        expected = flow.log_prob(x, context)
        torch.manual_seed(3)
        assert torch.equal(again.log_prob(x, context), expected)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_made_by_hand_comes_back(name, tmp_path):
    flow = FLOWS[name]()
    randomise(flow)
    flow.eval().save(tmp_path / "run")
    torch.manual_seed(99)
    again = diffeo.load(tmp_path / "run")
    assert type(again.transform) is type(flow.transform)
    same(flow, again, tmp_path)
    assert described(again) == described(flow)


# Not those that have a part of the tests: a velocity, or what takes the last element off a simplex.
@pytest.mark.parametrize("name", [name for name in NAMES if "ode" not in name and "simplex" not in name])
def test_every_transform_comes_back(name, tmp_path):
    transform = make(name, torch.float32)
    flow = diffeo.Flow(StandardNormal(case(name).event_shape), transform)
    again = rebuilt(json.loads(json.dumps(described(flow)))).eval()
    again.load_state_dict(flow.state_dict())
    x, context = inputs(name, (5,), torch.float32)
    with torch.no_grad():
        for seed, (value, expected) in enumerate(
            zip(*(outputs(each, x, context) for each in (again, flow)), strict=True)
        ):
            assert torch.equal(value, expected), seed


def test_every_part_has_a_name():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    objectives = below(Objective)  # know their arguments, too, and are no part of a flow
    kinds = {kind for kind in below(KnowsArguments) - objectives if kind.__module__.startswith("diffeo.")}
    kinds = {
        kind for kind in kinds if vars(sys.modules[kind.__module__]).get(kind.__name__) is kind
    }  # not imported anew
    public = {kind for kind in kinds if not inspect.isabstract(kind) and not kind.__name__.startswith("_")}
    unnamed = {kind.__name__ for kind in public if structure._parts().get(kind.__name__) is not kind}
    assert unnamed <= {"KnowsArguments", "Feedforward"}


def outputs(flow, x, context):
    """Of both directions, with the same noise where one of them draws some."""
    for method in (flow.transform.forward_and_log_det, flow.transform.inverse_and_log_det):
        torch.manual_seed(0)
        yield from method(x, context)


def test_a_flow_of_a_recipe_is_stored_by_it(tmp_path):
    flow = diffeo.maf(3, hidden=(8,))
    flow.save(tmp_path / "run")
    assert json.loads((tmp_path / "run/model.json").read_text())["recipe"] == flow.recipe
    with pytest.raises(UserError, match="holds a run"):
        flow.save(tmp_path / "run")
    flow.save(tmp_path / "run", force=True)


def test_fit_makes_a_run_that_load_takes(tmp_path):
    x = torch.randn(200, 3)
    flow = by_hand()
    diffeo.fit(diffeo.MaximumLikelihood(flow), x, epochs=2, out=tmp_path / "run")
    same(flow, diffeo.load(tmp_path / "run"), tmp_path)
    diffeo.fit(diffeo.MaximumLikelihood(by_hand()), x, epochs=3, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (
            lambda: by_hand([transforms.Coupling(transforms.Shift(), MASK, Net())]),
            r"got Net as transform.*\.net: a flow",
        ),
        (lambda: by_hand([type("Mine", (transforms.ActNorm,), {})(3)]), "got Mine as transform"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_any_training(flow, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        flow().save(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        diffeo.fit(diffeo.MaximumLikelihood(flow()), torch.randn(50, 3), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


def test_a_flow_that_was_changed_after_it_was_made_is_refused():
    flow = by_hand([transforms.Coupling(transforms.Affine(), MASK, nn.Sequential(nn.Linear(2, 2)))])
    flow.transform.transforms[0].net[0] = nn.Linear(2, 2, bias=False)
    assert rebuilt(described(flow)).transform.transforms[0].net[0].bias is None  # of torch's own, what there is
    flow = by_hand([transforms.Autoregressive(transforms.Affine(), nets.MADE(3, 2, (8,)))])
    flow.transform.transforms[0].net.layers[0] = nn.Linear(3, 9)
    with pytest.raises(ValueError, match="expected a flow whose parts are as they were made, got another"):
        described(flow)


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe["arguments"].pop("base"),
        lambda recipe: recipe["arguments"]["transform"].update(part="Nothing"),
        lambda recipe: recipe["arguments"]["transform"].update(part="torch.Linear"),
        lambda recipe: recipe["arguments"]["base"]["arguments"].update(more=1),
        lambda recipe: recipe.update(arguments={}),
    ],
)
def test_a_damaged_structure_is_named(change, tmp_path):
    by_hand().save(tmp_path / "run")
    model = json.loads((tmp_path / "run/model.json").read_text())
    change(model["recipe"])
    (tmp_path / "run/model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match=r"no model can be built from its recipe|does not belong to") as caught:
        diffeo.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_flow_that_is_no_longer_its_recipes_is_refused_in_words(tmp_path):
    """The recipe would make another one, whose weights and densities are others."""

    def based(flow):
        flow.base = StandardLogistic(3)

    def mapped(flow):
        flow.transform.transforms[0].univariate = transforms.Gated()

    def longer(flow):
        flow.transform.transforms.append(transforms.LU(3))

    def normed(flow):
        nn.utils.parametrizations.weight_norm(flow.transform.transforms[0].net.layers[0])

    def broken(flow):
        flow.transform.transforms[0].net.layers[0].bias.data[1] = torch.nan

    for change, message in (
        (based, "another base; make it by hand"), (mapped, r"another transform\.transforms\.0\.univariate"),
        (longer, r"another transform\.transforms"), (normed, r"another transform\.transforms\.0\.net\.layers\.0"),
        (broken, r"expected finite weights, got NaN or infinity in transform\.transforms\.0\.net\.layers\.0\.bias"),
    ):  # fmt: skip
        flow = diffeo.maf(3, hidden=(8,))
        change(flow)
        with pytest.raises(ValueError, match=message):
            flow.save(tmp_path / "run")
        assert not (tmp_path / "run").exists()
    flow = diffeo.maf(3, hidden=(8,))
    other = diffeo.Flow(StandardLogistic(3), flow.parts)
    state = torch.get_rng_state()
    other.save(tmp_path / "other")
    diffeo.maf(3, hidden=(8,))
    torch.set_rng_state(state)
    flow.save(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state), "to look takes no noise from the caller"
    x = torch.randn(5, 3)
    assert torch.equal(diffeo.load(tmp_path / "other").log_prob(x), other.eval().log_prob(x))
