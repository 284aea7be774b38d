"""WaveNet, its student, and what compares them: causality, both readings, and the KL of each position."""

import copy
import math

import pytest
import torch

import diffeo
from cases import needs_compiler, randomise
from diffeo.nets import WaveNet
from diffeo.objectives import Distillation
from diffeo.objectives.conditional_kl import ConditionalKL, Conditionals, PairedKL, collapsed, encoded_kl, entropy
from diffeo.ops.reference import roots
from diffeo.transforms import Affine, Autoregressive, MixtureOfLogistics, Shift, univariate

SMALL = {"channels": 6, "layers": 3, "skip": 8}
HOP, CHANNELS, LENGTH = 5, 3, 23
FRAMES = -(-LENGTH // HOP)
CONTEXTS = [0, CHANNELS]


def teacher(context: int = 0, dtype: torch.dtype = torch.float64, length: int = LENGTH, **more) -> diffeo.Flow:
    return prepare(diffeo.wavenet(length, context, **{**SMALL, "cycles": 2, "hop": HOP, **more}), dtype)


def student(context: int = 0, dtype: torch.dtype = torch.float64, **more) -> diffeo.Flow:
    return prepare(diffeo.parallel_wavenet(LENGTH, context, **{**SMALL, "cycles": (1, 2), "hop": HOP, **more}), dtype)


def prepare(flow: diffeo.Flow, dtype: torch.dtype) -> diffeo.Flow:
    randomise(flow, scale=0.6)
    return flow.to(dtype).eval()


def frames(rows: int, context: int, dtype: torch.dtype = torch.float64) -> torch.Tensor | None:
    return torch.randn(rows, context, FRAMES, dtype=dtype) if context else None


@pytest.mark.parametrize("head", ["gaussian", "logistics"])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("kernel", [2, 3])
def test_incremental_inversion_equals_one_pass_per_sample(head, context, kernel):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        flow = teacher(context, dtype, head=head, kernel=kernel)
        z, contexts = flow.base.sample((4,)), frames(4, context, dtype)
        layer, normal = flow.transform.transforms[0], flow.normalize_context(contexts)
        with torch.no_grad():
            x, log_det = layer.forward_and_log_det(z, normal)
            naive = torch.zeros_like(x)
            for t in range(LENGTH):
                params = layer.net(naive.mT, normal).mT  # (size, rows, T)
                naive[:, t] = layer.univariate.forward_and_log_det(z, params)[0][:, t]
            assert ((x - naive).abs() / (1 + naive.abs())).max() <= tolerance
            back, log_det_back = layer.inverse_and_log_det(x, normal)
            assert ((back - z).abs() / (1 + z.abs())).max() <= 10 * tolerance
            assert ((log_det + log_det_back).abs() / (1 + log_det.abs())).max() <= 10 * tolerance


SHAPES = [  # channels, layers, cycles, kernel, skip, context, hop, length, rows
    (6, 3, 2, 3, 7, 0, 1, 100, 3),
    (32, 5, 2, 2, 64, 5, 13, 900, 2),
    (5, 2, 1, 2, 3, 2, 7, 48, 1),
    (4, 1, 1, 2, 3, 2, 7, 1, 2),
    (20, 4, 1, 4, 33, 3, 64, 60, 9),
]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_the_reference(plain, shape):
    channels, layers, cycles, kernel, skip, context, hop, length, rows = shape
    net = WaveNet(3, channels, layers, cycles, kernel, skip, context, hop)
    randomise(net, 0.8)
    contexts = torch.randn(rows, context, -(-length // hop), requires_grad=True) if context else None
    x, weights = torch.randn(length, rows, requires_grad=True), torch.randn(3, length, rows)
    leaves = [x, *([] if contexts is None else [contexts]), *net.parameters()]

    def results(shared):
        out = net(x, shared)
        return out, *torch.autograd.grad((weights * out).sum(), leaves, allow_unused=True, materialize_grads=True)

    one = None if contexts is None else contexts[:1]  # a context for all rows
    for shared in (contexts, one):
        fast, slow = results(shared), plain(lambda shared=shared: results(shared))
        for a, b in zip(fast, slow, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * (1 + (b.abs().max().item() if b.numel() else 0)))
        with torch.no_grad():
            assert torch.equal(net(x, shared), fast[0]), "the same without gradients"
        net.requires_grad_(False)
        (through,) = torch.autograd.grad((weights * net(x, shared)).sum(), x)
        net.requires_grad_(True)
        assert torch.allclose(through, fast[1], rtol=1e-5, atol=1e-6 * (1 + fast[1].abs().max().item())), "if frozen"


@needs_compiler
@pytest.mark.parametrize("univariate", [Affine, Shift, MixtureOfLogistics], ids=lambda each: each.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inversion_in_one_call_equals_the_reference(plain, univariate, shape):
    channels, layers, cycles, kernel, skip, context, hop, length, rows = shape
    length, map_ = min(length, 100), univariate()
    transform = Autoregressive(map_, WaveNet(map_.size, channels, layers, cycles, kernel, skip, context, hop))
    randomise(transform, 0.8)
    z = torch.randn(rows, length)
    contexts = torch.randn(rows, context, -(-length // hop)) if context else None
    with torch.no_grad():
        fast, slow = (
            transform.forward_and_log_det(z, contexts),
            plain(lambda: transform.forward_and_log_det(z, contexts)),
        )
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, atol=2e-5, rtol=2e-5)


@needs_compiler
@pytest.mark.parametrize("components", [1, 5, 64])
def test_mixtures_are_generated_as_by_the_reference(plain, components):
    mixture = MixtureOfLogistics(components)
    z = torch.cat([2 * torch.randn(500), torch.tensor([0.0, 30.0, -30.0, 1e6, -1e6])])
    params = 2 * torch.randn(mixture.size, len(z))
    with torch.no_grad():
        fast, slow = mixture.forward_and_log_det(z, params), plain(lambda: mixture.forward_and_log_det(z, params))
        assert torch.allclose(fast[0], slow[0], rtol=1e-5, atol=1e-5)
        assert torch.allclose(fast[1], slow[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("components", "size", "count", "rounds"),
    [(5, 0.5, 500, 10), *((components, size, 20_000, 70) for components, size in ((5, 2), (64, 2), (64, 6), (10, 20)))],
)
def test_mixtures_with_gaps_are_generated(plain, monkeypatch, components, size, count, rounds):
    """Between two components Newton's method goes to and fro: of 5 components for one element in some thousands."""
    mixture, taken = MixtureOfLogistics(components), []
    monkeypatch.setattr(
        univariate, "newton_or_half", lambda *state: (taken.append(state), roots.newton_or_half(*state))[1]
    )
    z, params = 3 * torch.randn(count), size * torch.randn(mixture.size, count)
    with torch.no_grad():
        slow = plain(lambda: mixture.forward_and_log_det(z.double(), params.double()))[0]
        assert (mixture.inverse_and_log_det(slow, params.double())[0] - z).abs().max() < 1e-8
        assert len(taken) <= rounds
        fast, alone = (mixture.forward_and_log_det(each, params[:, : len(each)])[0] for each in (z, z[:1]))
        assert torch.allclose(fast.double(), slow, rtol=1e-6, atol=1e-6)
        assert torch.equal(alone, fast[:1])  # whatever is beside it


def test_the_step_of_a_search_stays_within_its_bracket():
    x, low, high = torch.tensor(1.0), torch.tensor(0.0), torch.tensor(4.0)

    def after(step, moved=10.0):
        return roots.newton_or_half(x, torch.tensor(step), low, high, torch.tensor(moved)).item()

    assert [after(step) for step in (0.5, -1.0, 3.0)] == [1.5, 0.0, 4.0]
    assert [after(step) for step in (-1.5, 3.5, math.inf, -math.inf, math.nan)] == [2.0] * 5
    assert [after(0.5, moved) for moved in (1.0, 0.9, math.nan)] == [1.5, 2.0, 2.0]


@needs_compiler
def test_a_row_cut_into_pieces_is_read_as_in_one():
    """With more threads than rows; pieces begin far enough before their first output."""
    net = WaveNet(2, 6, 4, 2, skip=8, context=2, hop=50)
    randomise(net, 0.8)
    x, contexts = torch.randn(4010, 1), torch.randn(1, 2, 81)
    threads = torch.get_num_threads()
    with torch.no_grad():
        try:
            torch.set_num_threads(1)
            whole = net(x, contexts)
            torch.set_num_threads(5)
            pieces = net(x, contexts)
        finally:
            torch.set_num_threads(threads)
    assert torch.allclose(whole, pieces, atol=1e-6)


@needs_compiler
def test_second_derivatives_are_those_of_the_reference(plain):
    net = WaveNet(2, **SMALL)
    randomise(net, 0.8)
    x = torch.randn(20, 2, requires_grad=True)

    def second():
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert torch.allclose(second(), plain(second), rtol=1e-3, atol=1e-4)


@needs_compiler
def test_memory_is_used_again_and_given_back():
    net = WaveNet(2, channels=4, layers=2, cycles=1, skip=4)
    randomise(net)
    weight = net.last.weight

    def gradient(x):
        return torch.autograd.grad(net(x).square().sum(), weight)[0]

    x, other = torch.randn(9, 2), torch.randn(9, 2)
    alone = gradient(x), gradient(other)
    assert len(net.spec.kept["spare"]) == 1
    outputs = net(x), net(other)  # two readings at a time have memory of their own
    for output, expected in zip(outputs, alone, strict=True):
        assert torch.equal(torch.autograd.grad(output.square().sum(), weight, retain_graph=True)[0], expected)
        assert torch.equal(torch.autograd.grad(output.square().sum(), weight)[0], expected), "a second time"
    del outputs, output
    assert len(net.spec.kept["spare"]) == 2
    assert gradient(torch.randn(200, 2)).isfinite().all(), "another length"
    assert len(net.spec.kept["spare"]) == 1
    assert not copy.deepcopy(net).spec.kept
    assert not net.eval().spec.kept["spare"]


@needs_compiler
def test_training_leaves_no_memory_behind():
    flow = teacher(dtype=torch.float32)
    diffeo.fit(diffeo.MaximumLikelihood(flow), torch.randn(20, LENGTH), epochs=1, batch_size=10)
    assert not flow.transform.transforms[0].net.spec.kept["spare"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_output_sees_the_samples_before_it_within_the_receptive_field_alone(dtype):
    net = WaveNet(2, channels=6, layers=3, cycles=1, skip=8).to(dtype)
    randomise(net)
    assert net.receptive_field == 8
    x = torch.randn(20, 64, dtype=dtype, requires_grad=True)
    out = net(x)
    for t in range(20):
        (by_x,) = torch.autograd.grad(out[:, t].sum(), x, retain_graph=True)
        seen = by_x.abs().amax(1) > 0
        assert torch.equal(seen, torch.tensor([t - 8 <= s < t for s in range(20)])), t


def test_each_output_sees_its_frame_and_its_neighbours_and_earlier_ones_in_all_channels():
    """One frame ahead by the convolution over frames; back as far as the layers reach."""
    net = WaveNet(2, context=CHANNELS, hop=HOP, **SMALL).double()
    randomise(net)
    x, contexts = torch.randn(LENGTH, 64, dtype=torch.float64), frames(64, CHANNELS).requires_grad_()
    out = net(x, contexts)
    for t in range(LENGTH):
        (by_frames,) = torch.autograd.grad(out[:, t].sum(), contexts, retain_graph=True)
        seen = by_frames.abs().amax(0) > 0  # (CHANNELS, FRAMES)
        # the first layer reads the context at its own time, and the taps of later layers reach back from there
        reach = net.receptive_field - 1 - net.dilations[0]
        first = max(0, t - reach) // HOP - 1
        expected = torch.tensor([first <= f <= t // HOP + 1 for f in range(FRAMES)])
        assert torch.equal(seen, expected.expand(CHANNELS, -1)), t


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_flow_of_another_length_is_the_same_model(context):
    flow, contexts = teacher(context), frames(2, context)
    size = LENGTH - 2 * HOP
    short = flow.resized((size,), (context, FRAMES - 2) if context else ())
    z = flow.base.sample((2,))
    x = flow.decode(z, contexts)
    y = short.decode(z[:, :size], None if contexts is None else contexts[..., : FRAMES - 2])
    same = size if contexts is None else (FRAMES - 3) * HOP  # the last frame has lost its neighbour
    assert torch.allclose(y[:, :same], x[:, :same])
    again = diffeo.recipes.build(short.recipe["name"], short.recipe["arguments"])
    assert (again.event_shape, again.context_shape) == (short.event_shape, short.context_shape)
    assert set(map(id, short.parameters())) == set(map(id, flow.parameters()))
    assert short.transform.transforms[1].std is flow.transform.transforms[1].std


def test_noise_of_a_fixed_shape_is_not_resized():
    flow = diffeo.Flow(diffeo.bases.GaussianMixture(4), diffeo.maf(4).transform)
    with pytest.raises(ValueError, match="expected noise that has any shape, got GaussianMixture"):
        flow.resized((5,))


def test_statistics_are_one_for_all_samples_and_one_per_channel_of_the_context():
    flow = diffeo.wavenet(LENGTH, CHANNELS, hop=HOP, **SMALL).train()
    x, contexts = (
        3 + 2 * torch.randn(50, LENGTH),
        torch.randn(50, CHANNELS, FRAMES) * torch.tensor([[1.0], [5.0], [0.1]]),
    )
    contexts[:, 2] = 0  # a label that no recording has
    flow.log_prob(x, contexts)
    standard = flow.transform.transforms[1]
    assert standard.mean.shape == ()
    assert torch.allclose(standard.std, x.std(correction=0))
    normal = flow.normalize_context(contexts)
    assert torch.allclose(normal.mean((0, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.std((0, 2), correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_student_learns_by_maximum_likelihood_on_foreign_audio(context):
    """The gradient of the sequential direction, by the transposed solve, equals that of finite differences."""
    flow, contexts = student(context), frames(2, context)
    x = flow.sample(() if context else 2, contexts)
    x = x + 0.1 * torch.randn_like(x)
    loss = -flow.log_prob(x, contexts).sum()
    loss.backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-5 * direction)
                values.append(-flow.log_prob(x, contexts).sum())
                parameter.sub_(sign * 1e-5 * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert torch.isclose((parameter.grad * direction).sum(), expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_collapsed_chain_equals_the_chain(context):
    flow, contexts = student(context), frames(4, context)
    z = flow.base.sample((4,))
    x, location, log_scale = collapsed(flow, z, contexts)
    assert torch.allclose(x, flow.decode(z, contexts), atol=1e-12)
    assert torch.allclose(location + log_scale.exp() * z, x, atol=1e-12)
    log_prob = flow.base.log_prob(z) - log_scale.sum(-1)
    assert torch.allclose(flow.log_prob(x, contexts), log_prob, atol=1e-8)
    # as the formula: m = sum_k m_k prod_{j > k} s_j, so m_t and s_t do not change with z_t
    for t in (0, 11, LENGTH - 1):
        moved = z.clone()
        moved[:, t] += 1
        _, other_location, other_scale = collapsed(flow, moved, contexts)
        assert torch.allclose(other_location[:, : t + 1], location[:, : t + 1], atol=1e-12)
        assert torch.equal(other_scale[:, : t + 1], log_scale[:, : t + 1])
        assert t == LENGTH - 1 or not torch.allclose(other_location[:, t + 1], location[:, t + 1])


@pytest.mark.parametrize("head", ["gaussian", "logistics"])
def test_conditional_densities_multiply_to_the_density(head):
    flow, contexts = teacher(CHANNELS, head=head), frames(4, CHANNELS)
    x = flow.sample((), contexts)
    density = Conditionals(flow, x, contexts)
    assert torch.allclose(density.log_prob(x).sum(-1), flow.log_prob(x, contexts))
    grid = torch.linspace(-60, 60, 20001, dtype=torch.float64)
    total = density.log_prob(grid[:, None, None].expand(-1, *x.shape)).exp().sum(0) * (grid[1] - grid[0])
    assert torch.allclose(total, torch.ones_like(total), atol=1e-3)


def equal_pair(head: str) -> tuple[diffeo.Flow, diffeo.Flow]:
    """A student and a teacher that are one density: neither sees the past, each has its own preprocessing."""
    noise, more = ("normal", {}) if head == "gaussian" else ("logistic", {"head": head, "components": 1, "bound": 5.0})
    one, other = student(cycles=(1,), noise=noise), teacher(**more)
    for flow, sign in ((one, 1), (other, -1)):
        layer = flow.transform.transforms[0]
        net = getattr(layer, "transform", layer).net
        with torch.no_grad():
            net.last.weight.zero_()
            location, log_scale = 0.3, 0.7
            scale = math.exp(math.tanh(log_scale / 5) * 5)
            # the student's layer is an inverse: x = (z - m) exp(-a)
            net.last.bias[-2], net.last.bias[-1] = (
                (-location / scale, -log_scale) if sign > 0 else (location, log_scale)
            )
        flow.transform.transforms[1].load_state_dict(one.transform.transforms[1].state_dict())
    if head == "gaussian":
        other.transform.transforms[0].univariate.bound = 5.0
    return one, other


@pytest.mark.parametrize("head", ["gaussian", "logistics"])
def test_the_kl_of_a_density_to_itself_is_zero(head):
    one, other = equal_pair(head)
    x = one.sample(50)
    assert torch.allclose(one.log_prob(x), other.log_prob(x), atol=1e-8), "the test's own premise"
    _, kl = ConditionalKL(draws=4000 if head == "logistics" else 1)(one, other, x)
    stderr = kl.std() / math.sqrt(len(kl))
    assert kl.mean().abs() <= (1e-9 if head == "gaussian" else 4 * stderr + 1e-9)


@pytest.mark.parametrize("head", ["gaussian", "logistics"])
def test_the_encoded_kl_of_a_density_to_itself_is_zero(head):
    one, other = equal_pair(head)
    x = other.sample(50)
    assert encoded_kl(one, other, x).abs().max() < 1e-8


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_encoded_kl_is_a_sum_of_divergences(context):
    """Over rows of the teacher's, its mean is that of the KLs of each position's Gaussians, the student's read at z."""
    one, other, contexts = student(context), teacher(context), frames(2, context)
    contexts = None if contexts is None else contexts[:1].expand(500, -1, -1)
    with torch.no_grad():
        x = other.sample(() if context else 500, contexts)
        estimate = encoded_kl(one, other, x, contexts)
        _, m, log_s = collapsed(one, other.encode(x, contexts), contexts)
        density = Conditionals(other, x, contexts)
        standardized, log_slope = density.normalize(m)  # (m - m_p) / s_p and -ln s_p
        log_ratio = log_s + log_slope
        closed = (log_ratio + 0.5 * ((1 + standardized.square()) * torch.exp(-2 * log_ratio) - 1)).sum(-1)
    gap = estimate - closed
    assert closed.min() > 0
    assert gap.mean().abs() <= 4 * gap.std() / math.sqrt(len(gap))


def test_the_encoded_kl_teaches_the_student_alone():
    one, other = student(), teacher()
    loss = Distillation(one, other, forward_estimator=encoded_kl, forward_share=1.0)
    loss(other.sample(3)).sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert all(parameter.grad is None for parameter in (*other.parameters(), *loss.teacher.parameters()))
    with pytest.raises(ValueError, match="expected the same noise in student and teacher, got StandardLogistic and"):
        encoded_kl(student(noise="logistic"), other, other.sample(2))


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_pair_is_one_pass_for_both_divergences(context, monkeypatch):
    one, other, contexts = student(context), teacher(context), frames(5, context)
    x = other.sample(() if context else 5, contexts)
    draw, reverse, forward = PairedKL()(one, other, x, contexts)
    z = other.encode(x, contexts)
    assert torch.allclose(draw, one.decode(z, contexts))
    assert torch.allclose(forward, encoded_kl(one, other, x, contexts))
    mixed = Distillation(one, other, estimator=PairedKL(), forward_estimator=None, forward_share=0.25)
    assert torch.allclose(mixed(x, contexts), 0.75 * reverse + 0.25 * forward)
    monkeypatch.setattr(one.base, "sample", lambda shape: z)
    assert torch.allclose(reverse, ConditionalKL()(one, other, x, contexts)[1])
    mixed(x, contexts).sum().backward()
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert all(parameter.grad is None for parameter in (*other.parameters(), *mixed.teacher.parameters()))
    with pytest.raises(ValueError, match="expected the same noise in student and teacher, got StandardLogistic and"):
        PairedKL()(student(context, noise="logistic"), other, x, contexts)


def test_the_pair_of_a_density_and_itself_is_one_sound():
    one, other = equal_pair("gaussian")
    x = other.sample(50)
    draw, reverse, forward = PairedKL()(one, other, x)
    assert torch.allclose(draw, x)
    assert max(reverse.abs().max(), forward.abs().max()) < 1e-8


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_closed_form_equals_monte_carlo(context):
    one, other, contexts = student(context), teacher(context), frames(2, context)
    contexts = None if contexts is None else contexts[:1].expand(4000, -1, -1)
    x = torch.zeros(4000, LENGTH)
    with torch.no_grad():
        draw, closed = ConditionalKL(regularizer=0)(one, other, x, contexts)
        single = one.log_prob(draw, contexts) - other.log_prob(draw, contexts)
        gap = single - closed
        assert gap.mean().abs() <= 4 * gap.std() / math.sqrt(len(gap))
        assert closed.std() < single.std(), "what the closed form is for"


def test_many_draws_equal_the_closed_form_where_there_is_one(monkeypatch):
    one, other = student(), teacher()
    torch.manual_seed(1)
    _, closed = ConditionalKL(regularizer=0)(one, other, torch.zeros(20, LENGTH))
    monkeypatch.setattr(Conditionals, "__init__", without_closed_form(Conditionals.__init__))
    torch.manual_seed(1)
    _, drawn = ConditionalKL(draws=4000)(one, other, torch.zeros(20, LENGTH))
    assert torch.allclose(drawn, closed, rtol=0.05, atol=0.5)


def without_closed_form(original):
    def init(self, *args):
        original(self, *args)
        self.gaussian = False

    return init


@pytest.mark.parametrize("noise", ["normal", "logistic"])
def test_entropy_is_that_of_the_noise_and_the_scale(noise):
    flow = student(noise=noise)
    z = flow.base.sample((2000,))
    x, _, log_scale = collapsed(flow, z)
    entropies = entropy(flow, log_scale)
    if noise == "logistic":
        assert torch.equal(entropies, log_scale + 2), "H = ln s + 2"
    gap = entropies.sum(-1) + flow.log_prob(x)  # E -log p is the entropy
    assert gap.mean().abs() <= 4 * gap.std() / math.sqrt(len(gap))


@pytest.mark.parametrize("head", ["gaussian", "logistics"])
def test_gradients_reach_the_student_through_the_frozen_teacher(head):
    one, other = student(), teacher(head=head).requires_grad_(False)

    def loss():
        torch.manual_seed(3)
        return ConditionalKL(draws=3)(one, other, torch.zeros(2, LENGTH))[1].sum()

    loss().backward()
    for name, parameter in one.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * 1e-5 * direction)
                values.append(loss())
                parameter.sub_(sign * 1e-5 * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert torch.isclose((parameter.grad * direction).sum(), expected, rtol=1e-4, atol=1e-5), name


def test_a_fresh_student_has_the_scale_of_the_data():
    flow = diffeo.parallel_wavenet(LENGTH, **SMALL, cycles=(1, 1)).train()
    x = 0.5 + 0.01 * torch.randn(500, LENGTH)
    flow.log_prob(x)
    drawn = flow.sample(500)
    assert torch.isclose(drawn.std(), x.std(), rtol=0.05)
    assert torch.isclose(drawn.mean(), x.mean(), atol=0.001)


def test_components_of_the_mixture_start_apart():
    """Equal ones would have equal gradients for ever."""
    flow = diffeo.wavenet(LENGTH, **SMALL, head="logistics", components=3)
    (-flow.log_prob(torch.randn(8, LENGTH)).sum()).backward()
    grads = flow.transform.transforms[0].net.last.bias.grad.reshape(3, 3)
    for each in grads:
        assert each.unique().numel() == 3


def test_mixture_keeps_its_gradient_far_from_its_mass():
    """A clamped logarithm of a difference of two cumulative probabilities has none there."""
    params = torch.tensor([0.0, 0.0, -1.0, 1.0, -3.0, -3.0]).reshape(6, 1).expand(-1, 4).clone().requires_grad_()
    x = torch.tensor([-1e4, -50.0, 50.0, 1e4])
    z, log_slope = MixtureOfLogistics(2).inverse_and_log_det(x, params)
    log_prob = diffeo.bases.StandardLogistic(()).log_prob(z) + log_slope
    (by_params,) = torch.autograd.grad(log_prob.sum(), params)
    assert torch.isfinite(log_prob).all()
    outer = by_params.reshape(3, 2, 4)
    assert (outer[1].abs().sum(0) > 1).all(), "the locations are drawn towards x"
    assert (outer[2].abs().sum(0) > 1).all(), "the scales grow"


def test_mixture_has_the_density_of_its_components():
    params = torch.randn(9, 1, dtype=torch.float64)
    mixture = MixtureOfLogistics(3)
    x = torch.linspace(-5, 5, 100, dtype=torch.float64)
    z, log_slope = mixture.inverse_and_log_det(x, params.expand(-1, 100))
    weights, means, scales = params[:3].softmax(0), params[3:6], (7 * torch.tanh(params[6:] / 7)).exp()
    part = torch.sigmoid((x - means) / scales)
    assert torch.allclose(
        (diffeo.bases.StandardLogistic(()).log_prob(z) + log_slope).exp(), (weights * part * (1 - part) / scales).sum(0)
    )


def test_digital_silence_has_no_infinite_density():
    for head in ("gaussian", "logistics"):
        flow = diffeo.wavenet(50, **SMALL, head=head)
        optimizer = torch.optim.Adam(flow.parameters(), 0.1)
        for _ in range(50):
            optimizer.zero_grad()
            loss = -flow.log_prob(torch.zeros(2, 50)).mean()
            loss.backward()
            optimizer.step()
        assert torch.isfinite(loss)
        assert -loss <= 50 * 9.0


def test_mistakes_are_named():
    for arguments in ({"size": 0}, {"channels": 0}, {"hop": 0}, {"context": -1}):
        with pytest.raises(ValueError, match="expected positive sizes"):
            WaveNet(**{"size": 2, **arguments})
    with pytest.raises(ValueError, match="expected a kernel of at least 2 taps, got 1"):
        WaveNet(2, kernel=1)
    with pytest.raises(ValueError, match=r"expected a context of shape \(rows, 3, 5\) for 23 samples, 5 per frame"):
        WaveNet(2, context=3, hop=5)(torch.zeros(23, 1), torch.zeros(1, 3, 6))
    with pytest.raises(ValueError, match="expected head among gaussian, logistics, got 'softmax'"):
        diffeo.wavenet(50, head="softmax")
    with pytest.raises(ValueError, match="expected noise among normal, logistic, got 'uniform'"):
        diffeo.parallel_wavenet(50, noise="uniform")
    with pytest.raises(ValueError, match="expected features as a number of samples"):
        diffeo.wavenet((3, 4, 4))
    with pytest.raises(ValueError, match="expected components >= 1, got 0"):
        MixtureOfLogistics(0)
    with pytest.raises(ValueError, match=r"expected bound in \[1e-6, 1e12\], got 0"):
        MixtureOfLogistics(bound=0)
    with pytest.raises(ValueError, match="expected draws >= 1"):
        ConditionalKL(draws=0)
    x = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="expected a student of affine autoregressive maps in one order, got"):
        ConditionalKL()(diffeo.iaf(6), diffeo.wavenet(6), x)
    with pytest.raises(ValueError, match="expected a teacher of one autoregressive layer, got Inverse"):
        ConditionalKL()(diffeo.parallel_wavenet(6), diffeo.parallel_wavenet(6), x)
    with pytest.raises(ValueError, match="expected a transform whose elements keep one order, got Permutation"):
        diffeo.transforms.Permutation([1, 0]).forward_and_log_diagonal(torch.zeros(2))
