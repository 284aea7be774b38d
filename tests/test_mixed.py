"""The density of mixed columns: masses and integrals of 1, every conditional, gaps, copies, samples and training."""

import itertools
import math
import pickle

import pytest
import torch
from scipy import stats

import diffeo
from diffeo.objectives.any_order import AnyOrderLikelihood
from diffeo.recipes import build, mixed
from diffeo.transforms import Factor

CATEGORY = {"values": [0, 1, 2], "unseen": 0.01}
GAPPY = {"values": [0, 1], "gaps": True}
WHOLE = {"values": [0, 5], "steps": [1]}
COARSE = {"steps": [1, 10], "origin": 3}
REAL = {"steps": [0]}
ATOM = {"values": [0], "steps": [0], "gaps": True}
COPY = {"steps": [0], "copies": [[0, 1, 0], [0, 2, 1]]}
SHARE = {"steps": [0], "values": [0.5], "low": 0, "high": 1}
ABOVE = {"steps": [0], "low": -2}
BELOW = {"steps": [0], "copies": [[1, 1, 0]], "high": 4}  # what is copied may lie beyond
RATING = {"steps": [1, 5], "values": [0], "low": -0.5, "high": 11.5, "gaps": True}
COUNT = {"steps": [2], "low": -1}
TOYS = {
    "categories": [CATEGORY, GAPPY, {"values": [0, 1, 2, 3]}],
    "whole numbers": [WHOLE, COARSE, {"steps": [1], "copies": [[0, 1, 0]]}],
    "numbers": [REAL, ATOM, REAL],
    "all": [REAL, CATEGORY, ATOM, WHOLE, GAPPY, COARSE, COPY],
    "bounds": [SHARE, ABOVE, BELOW, RATING, COUNT],
}
each_toy = pytest.mark.parametrize("toy", TOYS)
each_kind = pytest.mark.parametrize("any_order", [True, False], ids=["any order", "one order"])


def rows(columns, n=500, seed=0):
    """Rows that such columns could have."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for column in columns:
        normal = torch.randn(n, generator=generator)
        steps = column.get("steps", [])
        if not steps:
            cells = torch.randint(len(column["values"]), (n,), generator=generator).float()
        elif steps == [0]:
            cells = normal * 3
        else:
            cells = (normal * 6).round() + column.get("origin", 0)
        cells = within(column, cells)
        chance = torch.rand(n, generator=generator)
        for j, a, b in column.get("copies", []):
            copied = a * made[j] + b
            cells = torch.where((chance < 0.2) & inside(column, copied), copied, cells)
            chance = torch.rand(n, generator=generator)
        if steps and column.get("values"):
            cells = torch.where(chance < 0.3, float(column["values"][0]), cells)
        if column.get("gaps"):
            cells = torch.where(torch.rand(n, generator=generator) < 0.2, torch.nan, cells)
        made.append(cells)
    return torch.stack(made, 1)


def inside(column, x):
    """Whether values are within a column's bounds."""
    low, high = Factor(**column).ends
    return (x > low) & (x < high)


def within(column, x):
    """Values of a smooth column moved within its bounds."""
    factor = Factor(**column)
    low, high = factor.ends
    if not factor.bounded:
        return x
    if not factor.continuous:
        step, origin = factor.steps[0], factor.origin
        return ((x - origin) / step).round().clamp(*factor.places(step)) * step + origin
    if math.isfinite(low + high):
        return low + (high - low) * torch.sigmoid(x / 3)
    return low + x.abs() if math.isfinite(low) else high - x.abs()


def flow_of(toy, orders=2, seed=1, size=0.2, any_order=True):
    """A flow that has seen rows, with weights moved at random."""
    columns = TOYS[toy] if isinstance(toy, str) else toy
    torch.manual_seed(seed)
    flow = mixed(len(columns), columns=columns, hidden=24, layers=2, components=3, orders=orders, any_order=any_order)
    flow.train()
    with torch.no_grad():
        flow.transform.log_conditionals(rows(columns), torch.zeros(500, len(columns), dtype=torch.bool))
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return flow.eval()


def values_of(column, reach=3000):
    """All values of a discrete column, and the gap: what its masses must sum to 1 over."""
    steps = column.get("steps", [])
    values = torch.arange(-reach, reach + 1.0) * steps[0] + column.get("origin", 0) if steps else column["values"]
    values = torch.as_tensor(values, dtype=torch.float32)
    extra = [torch.nan] if column.get("gaps") else []
    if column.get("unseen"):
        extra.append(float(len(column["values"])))
    return torch.cat([values, torch.tensor(extra)])


def points_of(column):
    """Values of a smooth column to integrate over: dense in the middle and at its bounds, and as wide as the tails."""
    low, high = Factor(**column).ends
    if math.isfinite(low + high):
        return low + (high - low) * torch.linspace(-36, 36, 20_002).double().sigmoid()
    distances = torch.linspace(-36, 12, 20_002).double().exp()
    if math.isfinite(low):
        return low + distances
    return (high - distances).flip(0) if math.isfinite(high) else torch.linspace(-12, 12, 20_002).double().sinh()


@torch.no_grad()
def masses(flow, row, i, values):
    """log p of column i at these values given the rest of a row."""
    x = row.expand(len(values), -1).clone()
    x[:, i] = values
    known = torch.ones_like(x, dtype=torch.bool)
    known[:, i] = False
    return flow.transform.log_conditionals(x, known)[:, i]


@pytest.mark.slow
@each_toy
@each_kind
def test_every_conditional_sums_or_integrates_to_one(toy, any_order):
    columns, flow = TOYS[toy], flow_of(toy, any_order=any_order).double()  # float32 has no values close to most bounds
    for row in rows(columns, 2, seed=2).double():
        for i, column in enumerate(columns):
            if column.get("steps") != [0]:
                assert masses(flow, row, i, values_of(column)).exp().sum().item() == pytest.approx(1, abs=1e-5)
                continue
            grid = points_of(column)
            total = torch.trapezoid(masses(flow, row, i, grid).exp(), grid).item()
            single = [*column.get("values", []), *([math.nan] if column.get("gaps") else [])]
            copies = torch.tensor([a * row[j] + b for j, a, b in column.get("copies", [])])
            single += copies[inside(column, copies)].tolist()
            total += masses(flow, row, i, torch.tensor(single).double()).exp().sum().item() if single else 0
            assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_floor_has_its_share_and_leaves_densities_of_one():
    """Its share of what the other parts have, so that 1 / (1 + share) of the old masses is left."""
    columns, flow = TOYS["all"], flow_of("all")
    flow.transform.put_floor(0.02)
    (row,) = rows(columns, 1, seed=2)
    nothing = torch.zeros(1, len(columns), dtype=torch.bool)
    for i, column in enumerate(columns):
        values = torch.linspace(-300, 300, 60_001) if column.get("steps") == [0] else values_of(column)
        x = row.expand(len(values), -1).clone()
        x[:, i] = values
        p = flow.transform.log_conditionals(x, nothing.expand_as(x))[:, i].exp().double()
        if column.get("steps") != [0]:
            assert p.sum().item() == pytest.approx(1, abs=1e-3)  # the floor is wider than these values
        elif column.get("steps"):
            assert torch.trapezoid(p, values.double()).item() < 1 + 1e-3
            far = torch.trapezoid(p[values > 100], values[values > 100].double()).item()
            assert 0 < far < 0.02


def test_masses_of_a_discrete_table_sum_to_one_and_conditionals_are_ratios_of_marginals():
    columns = TOYS["categories"]
    every = torch.tensor(list(itertools.product(*(values_of(column).tolist() for column in columns))))
    for orders in (1, 3):
        flow = flow_of("categories", orders)
        with torch.no_grad():
            assert flow.log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-6)
    # In one order, what comes first is known to what comes later.
    flow = flow_of("categories", 1)
    with torch.no_grad():
        for first in (1, 2):
            known = (torch.arange(len(columns)) < first).expand(len(every), -1)
            keys = every[:, :first].nan_to_num(-1)
            same = (keys[:, None] == keys[None]).all(-1)
            joint = flow.log_prob(every)
            marginal = (same * joint.exp()).sum(1)
            torch.testing.assert_close(flow.log_prob_given(every, known), joint - marginal.log(), atol=2e-5, rtol=0)


@each_toy
def test_column_by_column_is_as_all_at_once(toy):
    flow, x = flow_of(toy), rows(TOYS[toy], 40, seed=3)
    with torch.no_grad():
        for order in flow.transform.orders:
            known = torch.zeros_like(x, dtype=torch.bool)
            expected = torch.zeros_like(x)
            for i in order.tolist():
                expected[:, i] = flow.transform.log_conditionals(x, known)[:, i]
                known[:, i] = True
            shares, _ = flow.transform._in_order(x, torch.zeros_like(known), None, order)
            torch.testing.assert_close(shares, expected, atol=2e-5, rtol=1e-5)
        assert flow.log_prob(x).isfinite().all()
        assert (flow.transform.log_shares(x, torch.zeros_like(known)).sum(1) <= flow.log_prob(x) + 1e-4).all()


@each_toy
def test_one_order_takes_one_pass_and_depends_on_what_comes_before_and_on_nothing_else(toy):
    flow, columns = flow_of(toy, any_order=False), TOYS[toy]
    one, other = rows(columns, 60, seed=4), rows(columns, 60, seed=5)
    everything = torch.ones_like(one, dtype=torch.bool)
    with torch.no_grad():
        shares = flow.transform.log_conditionals(one, everything)
        torch.testing.assert_close(shares.sum(1), flow.log_prob(one))
        for i in range(len(columns)):
            before = everything & (torch.arange(len(columns)) < i)
            torch.testing.assert_close(flow.transform.log_conditionals(one, before)[:, i], shares[:, i])
            for j in range(len(columns)):
                x = one.clone()
                x[:, j] = other[:, j]
                changed = flow.transform.log_conditionals(x, everything)[:, i] != shares[:, i]
                assert changed.any() == (j <= i), f"column {i} by column {j}"


def test_drawing_in_one_order_column_by_column_is_as_by_whole_passes():
    flow = flow_of("all", any_order=False)
    network = flow.transform.network
    torch.manual_seed(0)
    with torch.no_grad():
        x = flow.sample(50)
        cells = flow.transform._cells(x)
        state = network.start(50)
        for i in range(x.shape[1]):
            known = (torch.arange(x.shape[1]) < i).expand_as(x)
            which = flow.transform._which(i)
            whole = network.head(network(cells.levels, cells.numbers, known), which)
            torch.testing.assert_close(network.head(network.hidden(state, i), which), whole, atol=2e-5, rtol=1e-5)
            numbers = flow.transform._of(cells.numbers, i)
            network.read(state, i, cells.levels[:, i], numbers, torch.ones(50, dtype=torch.bool))


def test_in_one_order_a_gap_without_a_mass_has_no_density():
    flow, x = flow_of("all", any_order=False), rows(TOYS["all"], 5)
    x[2, 0] = torch.nan
    assert flow.log_prob(x).isnan().tolist() == [False, False, True, False, False]


@each_toy
def test_conditionals_depend_on_all_that_is_known_and_on_nothing_else(toy):
    flow, columns = flow_of(toy), TOYS[toy]
    one, other = rows(columns, 60, seed=4), rows(columns, 60, seed=5)
    with torch.no_grad():
        for i in range(len(columns)):
            for j in range(len(columns)):
                if i == j:
                    continue
                x = one.clone()
                x[:, j] = other[:, j]
                known = torch.ones_like(x, dtype=torch.bool)
                known[:, i] = False
                changed = (
                    flow.transform.log_conditionals(x, known)[:, i] != flow.transform.log_conditionals(one, known)[:, i]
                )
                assert changed.any(), f"column {i} ignores column {j}"
                known[:, j] = False
                torch.testing.assert_close(
                    flow.transform.log_conditionals(x, known)[:, i], flow.transform.log_conditionals(one, known)[:, i]
                )


@each_toy
@each_kind
def test_decoding_what_was_encoded_gives_it_back(toy, any_order):
    flow = flow_of(toy, any_order=any_order)
    torch.manual_seed(0)
    with torch.no_grad():
        x = flow.sample(400)
        z, log_det = flow.transform.inverse_and_log_det(x)
        assert ((z >= 0) & (z <= 1)).all()
        torch.testing.assert_close(log_det, flow.log_prob(x))
        again = flow.decode(z)
    near = torch.isclose(again, x, atol=2e-3, rtol=1e-3, equal_nan=True).all(1)
    assert near.float().mean() >= 0.995  # a mass below float32's resolution of z cannot come back


def test_samples_match_the_masses():
    # Chi-square over all cells of the table: a false alarm in one of 10,000 seeds.
    columns = TOYS["categories"]
    every = torch.tensor(list(itertools.product(*(values_of(column).tolist() for column in columns[:2]), range(4))))
    flow = flow_of("categories", 3)
    torch.manual_seed(0)
    with torch.no_grad():
        x, expected = flow.sample(40_000).nan_to_num(-1), flow.log_prob(every).double().exp()
    every = every.nan_to_num(-1)
    counts = torch.stack([(x == cell).all(1).sum() for cell in every])
    often = expected * len(x) > 5
    assert counts[expected < 1e-9].sum() == 0
    unseen = (every[:, 0] == 3) | ~often  # samples hold no category that was never seen: its mass goes to the others
    share = expected[~unseen] / expected[~unseen].sum()
    assert stats.chisquare(counts[~unseen], share * counts[~unseen].sum()).pvalue > 1e-4


@pytest.mark.parametrize("toy", ["whole numbers", "numbers", "all", "bounds"])
@each_kind
def test_noise_of_samples_is_uniform(toy, any_order):
    # Kolmogorov-Smirnov in every column: a false alarm in one of 10,000 seeds.
    flow = flow_of(toy, 2, any_order=any_order)
    torch.manual_seed(0)
    with torch.no_grad():
        z = flow.transform.inverse(flow.sample(4000))
    for i in range(z.shape[1]):
        assert stats.kstest(z[:, i].numpy(), "uniform").pvalue > 1e-4 / z.shape[1]


def test_a_gap_has_a_mass_where_gaps_were_seen_and_is_marginalised_elsewhere():
    columns = [CATEGORY, GAPPY, {"values": [0, 1, 2, 3]}]
    flow = flow_of(columns, 1)
    x = rows(columns, 20, seed=7)
    with torch.no_grad():
        x[:, 2] = torch.nan  # the last of the order, which has no gaps
        each = torch.stack([flow.log_prob(torch.cat([x[:, :2], torch.full((20, 1), float(v))], 1)) for v in range(4)])
        torch.testing.assert_close(flow.log_prob(x), each.logsumexp(0), atol=1e-5, rtol=0)
        x[:, 1] = torch.nan
        known = torch.tensor([True, False, False]).expand(20, -1)
        assert (flow.transform.log_conditionals(x, known)[:, 1] < 0).all()
        assert (flow.transform.log_conditionals(x, known)[:, 2] == 0).all()


def test_copies_are_exact_and_need_what_they_copy():
    flow = flow_of("all", 2)
    torch.manual_seed(0)
    with torch.no_grad():
        flow.transform.network.last.bias[:] = torch.where(
            torch.isin(torch.arange(flow.transform.network.last.out_features), flow.transform._which(6)[:1]), 6.0,
            flow.transform.network.last.bias,
        )  # fmt: skip
        x = flow.sample(2000)
        assert ((x[:, 6] == x[:, 0]) | (x[:, 6] == 2 * x[:, 0] + 1)).float().mean() > 0.3
        known = torch.ones_like(x, dtype=torch.bool)
        known[:, 6] = False
        x[:, 6] = x[:, 0]
        close = flow.transform.log_conditionals(x, known)[:, 6]
        known[:, 0] = False
        assert (flow.transform.log_conditionals(x, known)[:, 6] != close).all()


def test_a_copy_on_a_grid_is_one_point_also_half_way_between_two():
    flow = flow_of([{"steps": [1]}, {"steps": [1], "copies": [[0, 0.5, 0]]}])
    values = torch.arange(-3000, 3001.0)
    for source in (3.0, 4.0, -5.0):
        assert masses(flow, torch.tensor([source, 0.0]), 1, values).logsumexp(0).abs() < 1e-5


def test_drawn_cells_keep_what_is_known_and_have_no_gaps_if_asked():
    flow, x = flow_of("all"), rows(TOYS["all"], 300, seed=8)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.manual_seed(0)
    full = flow.complete(x, known, gaps=False)
    assert torch.equal(full[known].nan_to_num(-1e9), x[known].nan_to_num(-1e9))
    assert not full[~known].isnan().any()
    assert flow.complete(x, known)[~known].isnan().any()


def test_far_tails_have_finite_logarithms_and_gradients():
    columns = [{"steps": [1]}, REAL, COARSE]
    flow = flow_of(columns)
    x = torch.tensor([[1e6, 1e6, 1e6 + 3], [-1e6, -1e6, 3 - 1e6], [0.0, 0.0, 3.0]])
    losses = -flow.log_prob(x)
    assert losses.isfinite().all()
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)
    with torch.no_grad():
        assert flow.log_prob(torch.tensor([[0.5, 0.0, 3.0]])).item() == -math.inf  # no whole number


def test_nothing_lies_beyond_bounds():
    columns, flow = TOYS["bounds"], flow_of("bounds", size=1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = flow.sample(20_000)
        assert flow.log_prob(drawn).isfinite().all()
        (row,) = rows(columns, 1, seed=2)
        for i, column in enumerate(columns):
            low, high = Factor(**column).ends
            assert inside(column, drawn[:, i][~drawn[:, i].isnan()]).all()
            beyond = torch.tensor([each for each in (low - 1, low, high, high + 1, high + 3) if math.isfinite(each)])
            for values in (beyond, beyond.round()):
                outside = values[~inside(column, values)]
                assert (masses(flow, row, i, outside) == -math.inf).all()
        known = torch.ones_like(drawn, dtype=torch.bool)
        known[:, 2] = False
        drawn[:, 1] = 7.0  # a copy of it would lie beyond
        assert (flow.complete(drawn, known)[:, 2] < 4).all()


def test_close_to_a_bound_logarithms_and_gradients_are_finite():
    flow = flow_of([SHARE, {"steps": [0], "low": 0}, {"steps": [0], "high": 0}])
    tiny = torch.tensor([1e-37, 1e-30, 1e-10, 1e-3, 1e4, 1e6])
    losses = -flow.log_prob(torch.stack([tiny.clamp_max(1 - 6e-8), tiny, -tiny], 1))
    assert losses.isfinite().all()
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


def test_beyond_a_single_bound_what_is_broad_is_as_broad_as_without():
    # By a logarithm a value e^100 times as large as others would be as likely as one of 100 deviations is without.
    torch.manual_seed(0)
    for column in ({"steps": [0]}, {"steps": [0], "low": 0}):
        flow = flow_of([column], orders=1, size=0.0)
        flow.transform.put_floor(1.0)
        assert 50 < flow.sample(5000).abs().amax() < 1e4


def test_masses_of_narrow_cells_are_not_rounded_away():
    # Whole numbers spread over 10^5: what float32 keeps of a cell's two ends differs from its width by a hundredth.
    flow = mixed(2, columns=[{"steps": [1]}, {"steps": [1, 10]}], hidden=24, layers=2, components=3, orders=1)
    x = (torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * 1e5).round()
    flow.train()
    with torch.no_grad():
        flow.transform.log_conditionals(x, torch.zeros(2000, 2, dtype=torch.bool))
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        expected = pickle.loads(pickle.dumps(flow.eval())).double().log_prob(x.double())
        torch.testing.assert_close(flow.log_prob(x).double(), expected, atol=1e-3, rtol=0)


def test_the_objective_is_the_mean_over_all_orders():
    flow, x = flow_of("numbers", 1), rows(TOYS["numbers"], 6, seed=9)
    torch.manual_seed(0)
    with torch.no_grad():
        nothing = torch.zeros_like(x, dtype=torch.bool)
        orders = [torch.tensor(order) for order in itertools.permutations(range(3))]
        mean = torch.stack([-flow.transform._in_order(x, nothing, None, order)[0].sum(1) for order in orders]).mean(0)
        objective = flow.default_objective()
        assert isinstance(objective, AnyOrderLikelihood)
        drawn = objective(x.repeat(5000, 1)).reshape(5000, 6)
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / math.sqrt(5000)).all()


@each_kind
def test_a_flow_learns_saves_and_loads(tmp_path, any_order):
    x = rows(TOYS["all"], 600, seed=10)
    flow = mixed(7, columns=TOYS["all"], hidden=32, layers=2, components=3, orders=2, any_order=any_order)
    result = diffeo.fit(flow, x, epochs=20, batch_size=100, lr=3e-3, out=tmp_path / "run")
    history = [entry["val_loss"] for entry in result.history]
    assert min(history) < history[0] - 1
    with torch.no_grad():
        expected = flow.log_prob(x)
        assert torch.equal(diffeo.load(tmp_path / "run").log_prob(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(flow)).log_prob(x), expected)
        by_hand = diffeo.Flow(flow.base, flow.transform)
        by_hand.eval().save(tmp_path / "hand")
        assert torch.equal(diffeo.load(tmp_path / "hand").log_prob(x), expected)
        double = pickle.loads(pickle.dumps(flow)).double()
        torch.testing.assert_close(double.log_prob(x.double()).float(), expected, atol=2e-3, rtol=1e-4)


def test_a_context_conditions_every_column():
    flow = mixed(3, 2, columns=TOYS["categories"], hidden=24, layers=2)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow.eval()
    x = rows(TOYS["categories"], 10)
    assert (flow.log_prob(x, torch.zeros(2)) != flow.log_prob(x, torch.ones(2))).all()
    assert flow.sample(5, torch.zeros(2)).shape == (5, 3)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([{"values": []}], "values or with a smooth density"),
        ([{"values": [1, 0]}], "ascending"),
        ([{"steps": [0, 1]}], "above 0"),
        ([{"steps": [0], "copies": [[0, 1, 0]]}], "copies of other columns"),
        ([{"values": [0], "unseen": 1.5}], r"in \[0, 1\)"),
        ([{"steps": [0], "low": 1, "high": 1}], "low < high of a smooth column, got 1.0 and 1.0"),
        ([{"values": [0], "low": -1}], "low < high of a smooth column, got -1.0 and None"),
        ([{"steps": [0], "values": [2], "high": 2}], r"values between -inf and 2.0, got \(2.0,\)"),
        ([{"steps": [0], "low": float("nan")}], "low < high of a smooth column, got nan and None"),
        ([{"steps": [0], "high": "wide"}], "could not convert string to float: 'wide'"),
        ([{"steps": [1, 25], "low": 0.5, "high": 24.5}], "a point of every grid between 0.5 and 24.5, got steps"),
        ([{"steps": [0]}] * 2, "expected 1 columns, got 2"),
        ([{"kind": 3}], "kind"),
    ],
)
def test_bad_columns_are_refused(columns, expected):
    with pytest.raises(ValueError, match=expected):
        build("mixed", {"features": 1, "columns": columns})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"hidden": [16, 32]}, r"layers of one width, got .*16, 32"),
        ({"hidden": 0}, "hidden >= 1, got 0"),
        ({"layers": 0}, "layers >= 1, got 0"),
        ({"components": 0}, "components >= 1"),
        ({"preprocess": ["standardize"]}, "no preprocessing: the columns of a table"),
    ],
)
def test_bad_sizes_are_refused(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        build("mixed", {"features": 2, **arguments})


def test_widths_of_layers_say_how_many_there_are():
    network = mixed(2, hidden=[16, 16]).transform.network
    assert [layer.weight.shape for layer in network.layers] == [(16, 16)] * 2


def test_infinity_is_refused_and_a_gap_is_not():
    flow = flow_of("all")
    x = rows(TOYS["all"], 3)
    x[1, 0] = math.inf
    with pytest.raises(ValueError, match=r"finite values.*row 1"):
        flow.log_prob(x)
    assert Factor(values=(0, 1)).levels == 2


def test_only_flows_of_any_order_are_asked_for_conditionals():
    x, known = torch.zeros(3, 2), torch.tensor([True, False])
    flow = diffeo.recipes.maf(2)
    assert not flow.any_order
    for ask in (flow.log_prob_given, flow.complete):
        with pytest.raises(ValueError, match="conditionals of any columns"):
            ask(x, known)
    assert not mixed(2, any_order=False).any_order
    flow = mixed(2).eval()
    assert flow.any_order
    assert flow.complete(x, known)[:, 0].eq(0).all()
    with pytest.raises(ValueError, match="known of booleans"):
        flow.complete(x, known.float())
