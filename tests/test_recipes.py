"""Recipes: any univariate map by name, arguments that are remembered, defaults that are what the signature says."""

import inspect
import json

import pytest
import torch

import diffeo
from cases import randomise
from diffeo.recipes import RECIPES
from diffeo.training.run import create_run
from diffeo.transforms import (
    Affine,
    Composed,
    MixtureOfLogistics,
    RationalQuadraticSpline,
    Shift,
    Univariate,
    as_univariate,
    describe,
)

SMALL = {"hidden": [6], "transforms": 2}
SHORT = {"channels": 4, "layers": 2, "skip": 6}
WITH_A_MAP = {
    "nice": {"features": 4, **SMALL},
    "realnvp": {"features": 4, **SMALL},
    "realnvp-image": {"features": [1, 4, 4], **SMALL},
    "maf": {"features": 3, **SMALL},
    "iaf": {"features": 3, **SMALL},
    "nsf": {"features": 3, **SMALL},
    "nsf-coupling": {"features": 3, "structure": "coupling", **SMALL},
    "glow": {"features": [1, 4, 4], **SMALL},
    "wavenet": {"features": 9, "cycles": 1, **SHORT},
    "parallel_wavenet": {"features": 9, "cycles": [1], **SHORT},
}


class Cubic(Univariate):
    """x = z^3 exp(a): no map for use, but one without a name."""

    size = 1

    def generate(self, z, params):
        return z**3 * params[0].exp(), params[0] + (3 * z**2).log()

    def normalize(self, x, params):
        z = x.sign() * (x * (-params[0]).exp()).abs() ** (1 / 3)
        return z, -(params[0] + (3 * z**2).log())


def maps(flow: diffeo.Flow) -> list[Univariate]:
    return [part.univariate for part in flow.modules() if hasattr(part, "univariate")]


def test_every_recipe_that_has_a_map_takes_another():
    named = {name.partition("-")[0] for name in WITH_A_MAP}
    assert named == {name for name, make in RECIPES.items() if "univariate" in inspect.signature(make).parameters}
    assert set(RECIPES) - named == {"flow_matching", "mixed", "vae"}


@pytest.mark.parametrize("name", WITH_A_MAP)
@pytest.mark.parametrize(
    "univariate",
    [
        "spline",
        {"name": "spline", "bins": 4},
        ["spline", "affine"],
        RationalQuadraticSpline(5),
        RationalQuadraticSpline,
    ],
    ids=str,
)
def test_a_map_is_taken_remembered_and_rebuilt(name, univariate):
    recipe = name.partition("-")[0]
    flow = RECIPES[recipe](**WITH_A_MAP[name], univariate=univariate)
    expected = as_univariate(univariate)
    assert repr(expected) in map(repr, maps(flow))
    arguments = json.loads(json.dumps(flow.recipe["arguments"]))
    assert arguments["univariate"] == describe(expected)
    randomise(flow)
    other = diffeo.recipes.build(recipe, arguments)
    other.load_state_dict(flow.state_dict())
    x = torch.randn(7, *flow.event_shape)
    assert torch.equal(flow.eval().log_prob(x), other.eval().log_prob(x))


@pytest.mark.parametrize("name", WITH_A_MAP)
def test_a_map_without_a_name_works_but_is_not_stored(name, tmp_path):
    flow = RECIPES[name.partition("-")[0]](**WITH_A_MAP[name], univariate=Cubic())
    assert any(isinstance(each, Cubic) for each in maps(flow))
    assert torch.isfinite(flow.log_prob(torch.randn(5, *flow.event_shape))).all()
    assert flow.recipe is None
    with pytest.raises(ValueError, match=r"expected parts of diffeo.*got Cubic as transform"):
        create_run(tmp_path / "run", flow)


def test_maps_become_plain_data_and_come_back():
    for made in (Shift(), Affine(2.0), RationalQuadraticSpline(4, 3.0, 0.1, 2.0)):
        assert repr(as_univariate(describe(made))) == repr(made)
        assert as_univariate(made) is made
    nested = Composed(Composed(Shift(), Affine()), RationalQuadraticSpline())
    assert [each["name"] for each in describe(nested)] == ["shift", "affine", "spline"]
    assert as_univariate(describe(nested)).size == nested.size
    assert as_univariate([RationalQuadraticSpline(), {"name": "affine", "bound": 2}]).size == 25
    assert describe(Cubic()) is None
    assert describe(Composed(Affine(), Cubic())) is None


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("sinh", ValueError, "expected a univariate map among shift, scale, affine, spline, got 'sinh'"),
        ({"name": "sinh"}, ValueError, "got 'sinh'"),
        (
            {"name": "affine", "bins": 3},
            ValueError,
            "univariate map 'affine': got an unexpected keyword argument 'bins'",
        ),
        ({"name": "spline", "bins": 1}, ValueError, "expected bins >= 2, got 1"),
        ({"bins": 3}, TypeError, "expected a univariate map, a name such as 'affine'"),
        (3, TypeError, "expected a univariate map, a name such as 'affine', .*, got 3"),
        ([["affine"]], TypeError, "expected a univariate map"),
        ([], ValueError, "expected at least one univariate map, got none"),
    ],
)
def test_bad_maps_are_named(value, error, message):
    with pytest.raises(error, match=message):
        as_univariate(value)
    with pytest.raises(ValueError, match=message):
        diffeo.recipes.build("maf", {"features": 3, "univariate": value})


def test_a_map_that_forgets_its_arguments_is_refused(monkeypatch):
    class Forgetful(Shift):
        def __init__(self, bound=1.0):
            pass

    monkeypatch.setitem(diffeo.transforms.UNIVARIATES, "forgetful", Forgetful)
    with pytest.raises(
        ValueError, match="expected Forgetful to keep its argument 'bound' as an attribute of that name"
    ):
        diffeo.maf(2, univariate="forgetful")


@pytest.mark.parametrize(
    ("name", "stored", "bound"),
    [
        ("maf", {"features": 3, **SMALL, "bound": 2.0}, 2.0),
        ("iaf", {"features": 3, **SMALL, "bound": 4.0}, 4.0),
        ("realnvp", {"features": [1, 4, 4], **SMALL, "bound": 1.5}, 1.5),
        ("glow", {"features": [1, 4, 4], **SMALL, "bound": 3.0}, 3.0),
        ("parallel_wavenet", {"features": 9, **SHORT, "cycles": [1], "bound": 5.0}, 5.0),
        ("wavenet", {"features": 9, **SHORT, "cycles": 1, "bound": 9.0}, 9.0),
    ],
)
def test_arguments_as_earlier_versions_stored_them_make_the_same_flow(name, stored, bound):
    """Affine maps were wired in, with their bound among the recipe's arguments."""
    (kind,) = {repr(each) for each in maps(diffeo.recipes.build(name, stored))}
    assert kind == repr(Affine(bound))
    plain = {argument: value for argument, value in stored.items() if argument != "bound"}
    with pytest.raises(ValueError, match=f"recipe '{name}' takes no argument 'sudo'"):
        diffeo.recipes.build(name, {**plain, "sudo": 1})


def test_splines_as_earlier_versions_stored_them_make_the_same_flow():
    flow = diffeo.recipes.build("nsf", {"features": 3, **SMALL, "bins": 5, "bound": 4.0, "affine": True})
    expected = Composed(RationalQuadraticSpline(5, 4.0), Affine(2.0))
    assert {repr(each) for each in maps(flow)} == {repr(expected)}


def test_a_mixture_of_logistics_has_no_name_for_its_components_must_start_apart():
    assert diffeo.maf(3, univariate=MixtureOfLogistics()).recipe is None


# ---- Signatures, presets and defaults --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_signatures_are_kept(name):
    signature = inspect.signature(RECIPES[name])
    assert list(signature.parameters)[:2] == ["features", "context"]
    assert signature.return_annotation == "Flow"
    if "preset" in signature.parameters:
        assert "paper" in signature.parameters["preset"].annotation


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_are_those_of_the_signature(name):
    """Of vectors the first that ``by_shape`` names, of images the second; never another."""
    for shape in ([8], [1, 4, 4]):
        if (name in ("glow", "vae") and len(shape) == 1) or (("wavenet" in name or name == "mixed") and len(shape) > 1):
            continue
        remembered = RECIPES[name](shape).recipe["arguments"]
        for argument, parameter in list(inspect.signature(RECIPES[name]).parameters.items())[2:]:
            default = parameter.default
            if hasattr(default, "vectors"):
                default = default.vectors if len(shape) == 1 else default.images
            if argument == "univariate":
                default = None if default is None else describe(as_univariate(default))
            if argument != "preset":
                assert json.dumps(remembered[argument]) == json.dumps(default), argument


def test_what_is_given_is_taken_on_images_too():
    for name in ("nice", "maf", "realnvp"):
        flow = RECIPES[name]((1, 4, 4), hidden=(128, 128))
        assert flow.recipe["arguments"]["hidden"] == [128, 128]
    assert diffeo.nice((1, 4, 4), preset="paper", hidden=(9,)).recipe["arguments"]["hidden"] == [9]


def test_mistakes_name_the_recipe():
    with pytest.raises(TypeError, match=r"maf\(\) got an unexpected keyword argument 'bins'"):
        diffeo.maf(3, bins=4)
    with pytest.raises(TypeError, match=r"maf\(\) missing a required argument: 'features'"):
        diffeo.maf()
    with pytest.raises(ValueError, match="expected a preset among paper for 'maf', got 'huge'"):
        diffeo.maf(3, preset="huge")
