"""The estimators of scikit-learn, held to its own conformance suite and to what densities promise."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from diffeo import commands
from diffeo.sklearn import FlowDensity, FlowImputer, FlowOutlier, FlowRegressor

SMALL = {"hidden": [8]}
EXPECTED = {"check_sample_weight_equivalence_on_dense_data": "other rows make other batches, folds and validation"}
FAST = {"epochs": 2, "folds": 1, "random_state": 0}


@pytest.fixture(scope="module")
def x():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3)) @ np.array([[1, 0.5, 0], [0, 1, 2.0], [0, 0, 0.3]]) + [0, 10, -3]
    return np.round(x, 3)


@pytest.fixture(scope="module")
def frame():
    generator = np.random.default_rng(1)
    size = generator.lognormal(size=120)
    frame = pd.DataFrame({"size": size, "count": generator.poisson(3 * size), "shape": generator.choice([*"abc"], 120)})
    frame.loc[::7, "size"] = np.nan
    frame.loc[::11, "shape"] = None
    return frame


@pytest.fixture(scope="module")
def density(x):
    return FlowDensity(arguments=SMALL, epochs=2, folds=2, random_state=0).fit(x)


@pytest.fixture(scope="module")
def mixed(frame):
    return FlowDensity(arguments={**SMALL, "orders": 2}, epochs=2, folds=2, random_state=0).fit(frame)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [FlowDensity, FlowOutlier, FlowImputer, FlowRegressor], ids=lambda kind: kind.__name__
)
def test_the_conformance_suite_of_scikit_learn(estimator):
    epochs = 20 if estimator is FlowRegressor else 2  # it is to predict something
    results = check_estimator(
        estimator(arguments=SMALL, **{**FAST, "epochs": epochs}), on_skip=None, expected_failed_checks=EXPECTED
    )
    assert {each["check_name"] for each in results if each["status"] == "skipped"} <= {"check_array_api_input"}


def test_scores_do_not_depend_on_the_batch(density, mixed, x, frame):
    for estimator, rows in ((density, x), (mixed, frame)):
        together = estimator.score_samples(rows)
        assert together.dtype == np.float64
        alone = np.concatenate([estimator.score_samples(rows[i : i + 1]) for i in range(0, len(rows), 10)])
        np.testing.assert_allclose(alone, together[::10], rtol=0, atol=1e-7)


def test_scores_are_those_of_the_command_line(density, x, tmp_path):
    density.save(tmp_path / "run")
    rows = np.concatenate([x[:20], x[:20] + 0.1])  # of the training, and new ones
    np.save(tmp_path / "rows.npy", rows)
    summary = commands.score(tmp_path / "run", tmp_path / "rows.npy", tmp_path / "scores.npz")
    scores = np.load(tmp_path / "scores.npz")["X"][:, 1]
    np.testing.assert_allclose(density.score_samples(rows), scores, rtol=1e-12)
    assert density.score(rows) == pytest.approx(summary["mean"])
    assert summary["out_of_fold"] == 20


def test_a_run_of_the_command_line_is_an_estimator(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    commands.fit(tmp_path / "x.npy", tmp_path / "run", epochs=2, folds=2, arguments=SMALL, seed=3, figures=False)
    loaded = FlowDensity.load(tmp_path / "run")
    fitted = FlowDensity(epochs=2, folds=2, arguments=SMALL, random_state=3).fit(x)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_allclose(loaded.score_samples(x), fitted.score_samples(x), rtol=1e-9)


def test_noise_and_back(density, x):
    new = x[:50] * 1.5  # some outside the range of the training
    noise = density.transform(new)
    np.testing.assert_allclose(density.inverse_transform(noise), new, atol=1e-6)
    assert list(density.get_feature_names_out()) == ["flowdensity0", "flowdensity1", "flowdensity2"]
    framed = clone(density).set_output(transform="pandas").fit(x).transform(x)
    assert list(framed.columns) == ["flowdensity0", "flowdensity1", "flowdensity2"]


def test_whole_numbers_come_back_from_their_noise():
    x = np.random.default_rng(0).poisson(30, size=(100, 2))
    density = FlowDensity(arguments=SMALL, **FAST).fit(x)
    np.testing.assert_array_equal(density.inverse_transform(density.transform(x)), x)


def test_samples_are_as_the_rows_were(density, mixed, x, frame):
    drawn = density.sample(30, random_state=1)
    assert drawn.shape == (30, 3)
    np.testing.assert_array_equal(drawn, density.sample(30, random_state=1))
    assert (drawn.min(0) >= x.min(0)).all()
    drawn = mixed.sample(50, random_state=1)
    assert list(drawn.columns) == list(frame.columns)
    assert set(drawn["shape"].dropna()) <= set("abc")
    assert drawn["shape"].isna().any()
    with pytest.raises(ValueError, match="n_samples >= 1"):
        density.sample(0)


def test_columns_are_matched_by_name(mixed, frame):
    with pytest.raises(ValueError, match="feature names"):
        mixed.score_samples(frame.rename(columns={"size": "length"}))
    shuffled = frame.sample(frac=1, random_state=0)  # an index of its own
    np.testing.assert_allclose(mixed.score_samples(shuffled), mixed.score_samples(frame)[shuffled.index], atol=1e-9)


def test_outliers(x):
    outlier = FlowOutlier(arguments=SMALL, epochs=2, folds=2, contamination=0.1, random_state=0).fit(x)
    labels = outlier.predict(x)
    assert (labels == -1).sum() == 20
    np.testing.assert_array_equal(outlier.decision_function(x) < 0, labels == -1)
    assert (outlier.predict(x[:5] + 30) == -1).all()
    with pytest.raises(ValueError, match="contamination"):
        clone(outlier).set_params(contamination=0.7).fit(x)


def test_outliers_are_stored(x, tmp_path):
    outlier = FlowOutlier(arguments=SMALL, epochs=2, folds=2, contamination=0.1, random_state=0).fit(x)
    outlier.save(tmp_path / "run")
    loaded = FlowOutlier.load(tmp_path / "run")
    assert loaded.get_params() == outlier.get_params()
    assert loaded.offset_ == outlier.offset_
    np.testing.assert_array_equal(loaded.decision_function(x), outlier.decision_function(x))


def test_gaps_are_filled(frame):
    imputer = FlowImputer(arguments={**SMALL, "orders": 2}, **FAST)
    filled = imputer.set_output(transform="pandas").fit_transform(frame)
    assert not filled.isna().any().any()
    for name in frame:
        assert filled.loc[frame[name].notna(), name].tolist() == frame[name].dropna().tolist()
    assert filled["size"].between(frame["size"].min(), frame["size"].max()).all()
    again = pickle.loads(pickle.dumps(imputer)).transform(frame)
    pd.testing.assert_frame_equal(again, filled)


def test_estimators_survive_storing(density, mixed, x, frame, tmp_path):
    for name, estimator, rows in (("numbers", density, x), ("mixed", mixed, frame)):
        scores = estimator.score_samples(rows)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).score_samples(rows), scores)
        joblib.dump(estimator, tmp_path / name)
        np.testing.assert_array_equal(joblib.load(tmp_path / name).score_samples(rows), scores)
        estimator.save(tmp_path / f"{name}-run")
        loaded = FlowDensity.load(tmp_path / f"{name}-run")
        np.testing.assert_allclose(loaded.score_samples(rows), scores, rtol=1e-12)
        assert loaded.n_features_in_ == estimator.n_features_in_
        assert not hasattr(clone(estimator), "run_")


@pytest.fixture(scope="module")
def noisy():
    generator = np.random.default_rng(2)
    frame = pd.DataFrame({"x": generator.uniform(0, 3, 300), "kind": generator.choice([*"ab"], 300)})
    y = 2 * frame["x"] + 3 * (frame["kind"] == "a") + 0.1 * generator.normal(size=300)
    return frame, y.rename("price")


@pytest.fixture(scope="module")
def regressor(noisy):
    return FlowRegressor(arguments=SMALL, epochs=30, folds=2, random_state=0, lr=0.03).fit(*noisy)


def test_regression(regressor, noisy):
    x, y = noisy
    assert regressor.score(x, y) > 0.9
    quantiles = regressor.predict_quantiles(x, [0.1, 0.5, 0.9])
    assert quantiles.shape == (300, 3)
    assert (np.diff(quantiles) > 0).all()
    low, high = regressor.predict_interval(x, 0.8).T
    np.testing.assert_allclose(np.stack([low, high], 1), quantiles[:, [0, 2]])
    median = pickle.loads(pickle.dumps(regressor)).set_params(point="median")
    np.testing.assert_allclose(median.predict(x), quantiles[:, 1])
    assert regressor.targets_ == ["price"]


def test_draws_agree_with_quantiles(regressor, noisy):
    x, _ = noisy
    drawn = regressor.sample(x[:20], 2000, random_state=0)
    assert drawn.shape == (20, 2000)
    low, middle, high = regressor.predict_quantiles(x[:20], [0.25, 0.5, 0.75]).T
    np.testing.assert_allclose((drawn < middle[:, None]).mean(1), 0.5, atol=0.05)
    np.testing.assert_allclose(((drawn > low[:, None]) & (drawn < high[:, None])).mean(1), 0.5, atol=0.06)
    clipped = np.abs(drawn.mean(1) - regressor.predict(x[:20]))  # draws stay in the range of the training
    assert np.median(clipped) < 0.1 * drawn.std()


def test_predictions_do_not_depend_on_the_batch(regressor, noisy):
    x, _ = noisy
    for predict in (regressor.predict, regressor.predict_quantiles):
        alone = np.concatenate([predict(x[i : i + 1]) for i in range(0, 300, 30)])
        np.testing.assert_allclose(alone, predict(x)[::30], rtol=1e-7)


def test_regressions_are_stored(regressor, noisy, tmp_path):
    x, _ = noisy
    regressor.save(tmp_path / "run")
    loaded = FlowRegressor.load(tmp_path / "run")
    assert list(loaded.feature_names_in_) == ["x", "kind"]
    np.testing.assert_allclose(loaded.predict(x), regressor.predict(x), rtol=1e-9)
    x[:10].to_csv(tmp_path / "x.csv", index=False)
    summary = commands.predict(tmp_path / "run", tmp_path / "x.csv", tmp_path / "y.csv", quantiles=[0.05, 0.95])
    assert summary["rows"] == 10
    assert summary["targets"] == {}
    written = pd.read_csv(tmp_path / "y.csv")
    assert list(written.columns) == ["row", "price_q0.05", "price_q0.95"]
    np.testing.assert_allclose(written.to_numpy()[:, 1:], regressor.predict_interval(x[:10]), rtol=1e-9)


def test_several_targets(x):
    regressor = FlowRegressor(arguments=SMALL, **FAST).fit(x[:, :1], x[:, 1:])
    assert regressor.predict(x[:5, :1]).shape == (5, 2)
    assert regressor.predict_quantiles(x[:5, :1]).shape == (5, 2, 3)
    assert regressor.sample(x[:5, :1], 4).shape == (5, 4, 2)
    np.testing.assert_allclose(regressor.predict(x[:5, :1])[2:3], regressor.predict(x[2:3, :1]))
    assert regressor.targets_ == ["y0", "y1"]


def test_weights_count(x):
    far = np.concatenate([x, x + 100])
    weights = np.repeat([1.0, 1e-3], len(x))
    weighted = FlowDensity(arguments=SMALL, epochs=10, folds=2, random_state=0).fit(far, sample_weight=weights)
    drawn = weighted.sample(500, random_state=0)
    assert (drawn[:, 0] > 50).mean() < 0.1
    assert weighted.n_features_in_ == 3
    with pytest.raises(ValueError, match="zero weights"):
        FlowDensity(**FAST).fit(x, sample_weight=np.zeros(len(x)))


@pytest.mark.slow
def test_searches_and_pipelines(x):
    search = GridSearchCV(FlowDensity(arguments=SMALL, **FAST), {"epochs": np.array([1, 3])}, n_jobs=2, cv=2).fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    pipeline = make_pipeline(StandardScaler(), FlowDensity(arguments=SMALL, **FAST))
    assert np.isfinite(cross_val_score(pipeline, x, cv=2)).all()
    assert pipeline.fit(x).score_samples(x).shape == (200,)


def test_what_cannot_be_is_said(x, tmp_path):
    with pytest.raises(ValueError, match="epochs of at least 1"):
        FlowDensity(epochs=0).fit(x)
    with pytest.raises(ValueError, match="unknown model"):
        FlowDensity(model="gan").fit(x)
    with pytest.raises(ValueError, match="point to be"):
        FlowRegressor(point="mode").fit(x[:, :2], x[:, 2])
    with pytest.raises(ValueError, match="context is constant"):
        FlowRegressor(**FAST).fit(np.ones((len(x), 1)), x[:, 0])
    gaps = pd.DataFrame({"a": [*x[:, 0], np.nan]})
    with pytest.raises(ValueError, match="missing"):
        FlowRegressor(**FAST).fit(gaps, np.arange(len(gaps)))
    with pytest.raises(ValueError, match="does not exist"):
        FlowDensity.load(tmp_path / "nowhere")


def test_outliers_of_a_run_without_held_out_rows_are_scored_by_likelihood(tmp_path):
    """A table of a few rows, and a stored estimator whose memory of its rows is gone."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    model = FlowOutlier(folds=2, epochs=1, random_state=0).fit(x)
    model.save(tmp_path / "run")
    (tmp_path / "run" / "rows.safetensors").unlink()
    again = FlowOutlier.load(tmp_path / "run")
    assert again.offset_ == model.offset_
    np.testing.assert_allclose(again.score_samples(x), FlowDensity.load(tmp_path / "run").score_samples(x))
    few = FlowOutlier(epochs=1, random_state=0).fit(x[:3])
    assert np.isfinite(few.score_samples(x)).all()
