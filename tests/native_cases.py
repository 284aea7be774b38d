"""Cases for the kernels without Python (tests/native/driver.c): inputs, and what the reference makes of them.

Inputs are float32; what is expected is computed from them in float64. Sizes are odd, so that vectors and tiles are left
partial.
"""

import copy
import math
import struct
from functools import partial
from pathlib import Path

import torch

from cases import randomise
from diffeo.nets import MADE, MLP, Velocity, WaveNet
from diffeo.nets.velocity import embedding_size
from diffeo.objectives.paths import PATHS
from diffeo.ops import reference
from diffeo.ops.cpu.wavenet import pack
from diffeo.ops.reference.solvers import DORMAND_PRINCE, ERROR_WEIGHTS, Control
from diffeo.transforms import ODE, Affine, Composed, MixtureOfLogistics, RationalQuadraticSpline, Scale, Shift

KINDS = ["shift", "scale", "affine", "spline", "logistics"]
ACTIVATIONS = ["relu", "silu", "tanh", "elu"]
UNIVARIATES = {
    "shift": Shift,
    "scale": Scale,
    "affine": Affine,
    "spline": RationalQuadraticSpline,
    "spline of 2 bins": partial(RationalQuadraticSpline, 2),
    "spline-affine": lambda: Composed(RationalQuadraticSpline(5, 3.0), Affine(2.0)),
    "logistics": lambda: MixtureOfLogistics(3),
}
TRAINED = {name: make for name, make in UNIVARIATES.items() if name != "logistics"}
NETWORKS = [  # features, hidden, residual, activation, rows
    (6, (20, 20), False, "silu", 400),
    (37, (50, 50, 50), True, "tanh", 77),
    (9, (4, 4), True, "elu", 5),
    (9, (4,), False, "relu", 1),
    (5, (), False, "relu", 40),
    (64, (130, 130), True, "relu", 301),
]
CONTEXTS = 11  # numbers of a context, where there is one
WAVENETS = [  # channels, layers, cycles, kernel, skip, hop of the context, length, rows
    (6, 3, 2, 3, 7, 0, 100, 3),
    (32, 5, 2, 2, 64, 13, 900, 2),
    (5, 2, 1, 2, 3, 7, 48, 1),
    (4, 1, 1, 2, 3, 7, 1, 2),
    (20, 4, 1, 4, 33, 64, 60, 9),
    (6, 2, 2, 2, 8, 50, 4010, 1),  # so long that threads share a row
]


class Cases:
    """The content of a file of cases, as tests/native/driver.c describes it."""

    def __init__(self) -> None:
        self.content = bytearray()

    def add(self, run, name, expected, tolerance=(1e-4, 1e-5), **inputs):
        """Add a case: inputs and what is expected are tensors, text, or numbers; those that are None are left out."""
        arrays = {
            "run": f"{run}\0",
            "case": f"{run}: {name}\0",
            "tolerance": torch.tensor(tolerance).double(),
            **inputs,
        }
        arrays |= {f"={key}": torch.as_tensor(value).double() for key, value in expected.items() if value is not None}
        for key, value in arrays.items():
            if value is not None:
                self._write(key, value)
        self.content += b"end".ljust(24, b"\0")

    def _write(self, key, value):
        if isinstance(value, str):
            kind, data, count = "c", value.encode(), len(value)
        else:
            value = torch.as_tensor(value).detach()
            kind = {torch.float32: "f", torch.float64: "d", torch.int64: "l"}[value.dtype]
            data, count = value.contiguous().numpy().tobytes(), value.numel()
        self.content += key.encode().ljust(24, b"\0") + struct.pack("<qq", ord(kind), count) + data


def write_cases(path: Path) -> None:
    """Write all cases into a file."""
    torch.manual_seed(0)
    cases = Cases()
    for add in (maps, networks, mapped_networks, inversions, wavenets, wavenet_inversions, solves, matchings, updates):
        add(cases)
    path.write_bytes(cases.content)


def described(univariate):
    """The maps as the driver reads them."""
    specs = univariate.specs()
    rows = [[KINDS.index(each.kind), *each[1:]] for each in specs]
    return {"maps": torch.tensor(rows, dtype=torch.float64), "map_count": len(specs)}


def wide(*values):
    """Leaves in double precision."""
    return [None if each is None else each.detach().double().requires_grad_() for each in values]


def gradients(total, leaves):
    """The gradients of a sum by those leaves that are there."""
    there = [each for each in leaves if each is not None]
    derivatives = iter(torch.autograd.grad(total, there, retain_graph=True, materialize_grads=True))
    return [None if each is None else next(derivatives) for each in leaves]


def maps(cases):
    for name, make in UNIVARIATES.items():
        for rows, columns in [(1, 1), (5, 37), (77, 1), (3, 64)]:
            univariate = make()
            value = 2 * torch.randn(rows, columns)
            by_row = torch.randn(rows, univariate.size, columns)  # the parameters of a row side by side
            for layout, params in (("", by_row.movedim(1, 0).contiguous()), (" by row", by_row.movedim(1, 0))):
                storage = by_row if layout else params
                more = {**described(univariate), "value": value, "params": storage}
                title = f"{name} {rows} x {columns}{layout}"
                for generate in (1, 0):
                    if not generate and name == "logistics":
                        continue
                    x, p = wide(value, params)
                    out, log_det = (univariate.generate if generate else univariate.normalize)(x, p)
                    shape = [rows, columns, *params.stride()[:2], generate, 1]
                    close = (1e-5, 1e-5)
                    cases.add("map", title, {"out": out, "log_det": log_det}, close, shape=shape, **more)
                    if generate:
                        continue
                    gz, gl = torch.randn(2, rows, columns)
                    gx, gparams = gradients((gz * out + gl * log_det).sum(), [x, p])
                    expected = {"out": out, "log_det": log_det, "gx": gx, "gparams": gparams}
                    shape = [*shape[:-1], 0]
                    cases.add("map", f"{title}, backward", expected, (2e-4, 2e-4), shape=shape, gz=gz, gl=gl, **more)


def network_inputs(spec, tensors):
    """A network as the driver reads it."""
    inputs = {"depth": len(spec.layers), "activation": ACTIVATIONS.index(spec.activation)}
    inputs |= {"direct": int(spec.direct is not None), "contextual": int(spec.context is not None)}
    inputs["bound"] = torch.tensor([spec.bound])
    inputs |= named(spec, tensors)
    for index, wiring in enumerate(spec.sources):
        inputs[f"layer{index}"] = [wiring.units, wiring.columns, index < len(spec.layers) and spec.residual[index]]
        inputs[f"seen{index}"], inputs[f"first{index}"], inputs[f"ends{index}"] = wiring.seen, wiring.first, wiring.ends
    return {key: torch.tensor(value) if isinstance(value, (list, tuple)) else value for key, value in inputs.items()}


def named(spec, tensors):
    """A network's tensors, or their gradients, by the names that the driver knows."""
    layers = 2 * len(spec.layers)
    weights = [*tensors[:layers:2], *tensors[layers:]]
    named = {f"weight{index}": each for index, each in enumerate(weights)}
    return named | {f"bias{index}": each for index, each in enumerate(tensors[1:layers:2])}


def networks(cases):
    for features, hidden, residual, activation, rows in NETWORKS:
        contexts = CONTEXTS if residual else 0
        for masked in (True, False):
            for by_row in (False, True):
                if masked:
                    net = MADE(features, 2, hidden, contexts, activation, residual)
                else:
                    net = MLP(features, 2 * features, hidden, contexts, activation, residual)
                randomise(net)
                tensors, x = net._tensors(), 2 * torch.randn(features, rows)
                context = 2 * torch.randn(rows, contexts) if contexts else None
                grad = torch.randn(2 * features, rows)
                leaves = x64, context64, *tensors64 = wide(x, context, *tensors)
                out = reference.network(net.spec, x64, context64, tensors64)
                by_x, by_context, *by_tensors = gradients((grad * out).sum(), leaves)
                cases.add(
                    "network", f"{'masked' if masked else 'dense'} {features} {hidden} {activation}, {rows} rows",
                    {"out": out, "x": by_x, "context": None if by_context is None else by_context.mT,
                     **named(net.spec, by_tensors)},
                    rows=rows, x=x.mT if by_row else x, strides=[1, features] if by_row else [rows, 1], context=context,
                    grad=grad, **network_inputs(net.spec, tensors),
                )  # fmt: skip


def mapped_networks(cases):
    for name, make in TRAINED.items():
        for features, hidden, residual, activation, rows in NETWORKS[:-1]:
            for coupling in (False, True):
                univariate = make()
                if coupling:
                    seen = (features + 1) // 2
                    net = MLP(seen, univariate.size * (features - seen), hidden, CONTEXTS, activation, residual)
                else:
                    net = MADE(features, univariate.size, hidden, CONTEXTS, activation, residual)
                randomise(net)
                tensors, x = net._tensors(), torch.randn(features, rows)
                value = x[seen:].contiguous() if coupling else x
                x = x[:seen].contiguous() if coupling else x
                context = 2 * torch.randn(rows, CONTEXTS)
                grad, grad_log = torch.randn(len(value), rows), torch.randn(rows)
                leaves = x64, context64, value64, *tensors64 = wide(x, context, value if coupling else None, *tensors)
                arguments = net.spec, univariate, x64, context64, value64 if coupling else x64, tensors64
                out, log_det = reference.mapped_network(*arguments, generate=False)
                total = (grad * out).sum() + (grad_log * log_det).sum()
                by_x, by_context, by_value, *by_tensors = gradients(total, leaves)
                layout = (len(value), *((1, len(value)) if coupling else (univariate.size, 1)))
                inputs = {
                    "rows": rows, "x": x, "strides": [rows, 1], "context": context, "value": value,
                    **described(univariate), **network_inputs(net.spec, tensors),
                }  # fmt: skip
                title = f"{name}, {'coupling' if coupling else 'autoregressive'} {features} {hidden}, {rows} rows"
                cases.add(
                    "network", title,
                    {"out": out, "log_det": log_det, "x": by_x, "context": by_context.mT, "value": by_value,
                     **named(net.spec, by_tensors)},
                    (1e-3, 1e-4), mapping=[0, 0, *layout], grad=grad, grad_log=grad_log, **inputs,
                )  # fmt: skip
                for generate in (0, 1):
                    out, log_det = reference.mapped_network(*arguments, generate=bool(generate))
                    expected = {"out": out, "log_det": log_det}
                    cases.add("network", title, expected, (2e-5, 2e-5), mapping=[generate, 1, *layout], **inputs)


def inversions(cases):
    for name, make in UNIVARIATES.items():
        for features, hidden, residual, activation, rows in NETWORKS[:-1]:
            univariate = make()
            net = MADE(features, univariate.size, hidden, CONTEXTS if residual else 0, activation, residual)
            randomise(net)
            tensors, z = net._tensors(), 2 * torch.randn(rows, features)
            context = 2 * torch.randn(rows, CONTEXTS) if residual else None
            with torch.no_grad():
                z64, context64, *tensors64 = wide(z, context, *tensors)
                x, log_det = reference.invert_network(net.spec, univariate, z64, context64, tensors64)
            cases.add(
                "invert", f"{name} {features} {hidden}, {rows} rows", {"x": x, "log_det": log_det}, (2e-5, 2e-5),
                rows=rows, block=16, z=z, context=context, **described(univariate), **network_inputs(net.spec, tensors),
            )  # fmt: skip


def a_wavenet(size, shape):
    """A network, its weights, and the context's part of its gates."""
    channels, layers, cycles, kernel, skip, hop, length, rows = shape
    net = WaveNet(size, channels, layers, cycles, kernel, skip, hop=hop or 1)
    randomise(net, 0.8)
    depth, frames = len(net.dilations), -(-length // hop) if hop else 0
    return net, net._tensors(), torch.randn(rows, depth, 2 * channels, frames) if hop else None


def wavenet_inputs(spec, weights, shared, widths):
    """A network as the driver reads it; widths are those of the outputs, the channels and the skip connections."""
    size, channels, skip = widths
    frames = 0 if shared is None else shared.shape[3]
    return {
        "shape": [size, channels, len(spec.dilations), spec.kernel, skip, spec.hop, frames],
        "dilations": torch.tensor(spec.dilations), **{f"weight{index}": each for index, each in enumerate(weights)},
    }  # fmt: skip


def wavenets(cases):
    for shape in WAVENETS:
        *_, length, rows = shape
        net, tensors, shared = a_wavenet(3, shape)
        x, grad = torch.randn(rows, length), torch.randn(rows, 3, length)
        leaves = x64, shared64, *tensors64 = wide(x, shared, *tensors)
        out = reference.wavenet(net.spec, x64, shared64, tensors64)
        by_x, by_shared, *_ = gradients((grad * out).sum(), leaves)
        each_row = [gradients((grad[row] * out[row]).sum(), tensors64) for row in range(rows)]
        parts = [torch.cat([each.flatten() for each in of_row]) for of_row in each_row]  # their sum is the caller's
        cases.add(
            "wavenet", str(shape), {"out": out, "x": by_x, "shared": by_shared, "weights": torch.stack(parts)},
            rows=rows, length=length, x=x, grad=grad, shared=shared,
            **wavenet_inputs(net.spec, tensors, shared, [3, net.channels, net.spec.skip]),
        )  # fmt: skip


def wavenet_inversions(cases):
    for univariate in (Affine(), Shift(), MixtureOfLogistics()):
        for shape in WAVENETS:
            *shape, length, rows = shape
            length = min(length, 100)
            net, tensors, shared = a_wavenet(univariate.size, (*shape, length, rows))
            z, spec = torch.randn(rows, length), net.spec
            with torch.no_grad():
                z64, shared64, *tensors64 = wide(z, shared, *tensors)
                x, log_det = reference.invert_wavenet(spec, univariate, z64, shared64, tensors64)
            for lanes in (4, 8, 16):  # of a vector, on which the layout depends
                packed, packed_shared = pack(spec, tensors, shared, lanes)
                widths = [len(packed[index]) for index in (11, 1, 7)]
                cases.add(
                    "wavenet_invert", f"{type(univariate).__name__} {shape}", {"x": x, "log_det": log_det},
                    (2e-5, 2e-5), lanes=lanes, rows=rows, length=length, z=z, shared=packed_shared,
                    **wavenet_inputs(spec, packed, shared, widths), **described(univariate),
                )  # fmt: skip


def a_velocity(path, features, context, hidden=(), activation="silu", bound=None):
    """A velocity, and what the driver reads of it."""
    net = MLP(features, features, hidden, embedding_size(context), activation, True)
    velocity = Velocity(net, (features,), PATHS[path], context, bound=bound)
    randomise(velocity)
    for name in ("data_mean", "noise_mean"):
        getattr(velocity, name).normal_()
    for name in ("data_std", "noise_std"):
        getattr(velocity, name).uniform_(0.5, 2)
    spec = PATHS[path].spec
    inputs = {
        "rates": torch.tensor([spec.low, spec.high, bound or math.inf]).double(),
        **dict(velocity.named_buffers()),
    }
    return velocity, {key: each for key, each in inputs.items() if key == "rates" or key.endswith(("mean", "std"))}


def solves(cases):
    for path in PATHS:
        for features, context, hidden, activation, rows, bound in [
            (2, 0, (24, 24), "silu", 77, None),
            (5, 3, (20, 20, 9), "tanh", 41, 0.5),
            (1, 0, (), "silu", 1, 0.3),
            (3, 2, (7,), "elu", 5, 1.0),
        ]:
            velocity, inputs = a_velocity(path, features, context, hidden, activation, bound)
            z, contexts = torch.randn(rows, features), torch.randn(rows, context) if context else None
            z += z.sign()  # a state near zero would make the first step short
            field = velocity.field(rows, contexts)
            stages = [[*weights, *[0.0] * (7 - len(weights))] for weights in DORMAND_PRINCE.stages]
            inputs |= {
                "rows": rows, "stages": 7, "times": torch.tensor(DORMAND_PRINCE.times),
                "coefficients": torch.tensor(stages), "error": torch.tensor(ERROR_WEIGHTS), "context": contexts,
                "field": [features, context, field.frequencies, list(PATHS).index(path)],
                **network_inputs(field.network, field.tensors),
            }  # fmt: skip
            exact = ODE(copy.deepcopy(velocity).double(), (features,))
            for start, stop in ((0.2, 0.4), (0.7, 0.5)):
                for log_det in (False, True):
                    y = torch.cat([z, torch.zeros(rows, 1)], 1) if log_det else z
                    # so near that one step leads there; and so far that it takes several, but errors hardly grow
                    for end, tolerance in ((start + 0.05 * (stop - start), 1.0), (stop, 1e-6)):
                        with torch.no_grad():
                            truth = exact.replaced(rtol=tolerance, atol=tolerance).solve(
                                z.double(), start, end, None if contexts is None else contexts.double(), log_det=log_det
                            )
                        parts = [truth.value, *([truth.log_det[:, None]] if log_det else [])]
                        *control, most = Control.of(y, start, end, tolerance, tolerance, 10_000)
                        one = end != stop
                        cases.add(
                            "ode", f"{path} {features} {hidden}, from {start} to {end}",
                            {"out": torch.cat(parts, 1), "#evaluations": torch.full((rows,), 8) if one else None},
                            (1e-5, 1e-6) if one else (2e-4, 2e-4), y=y, elements=y.shape[1], most=most,
                            control=torch.tensor(control), **inputs,
                        )  # fmt: skip


def matchings(cases):
    for path in PATHS:
        for features, context, rows in [(2, 0, 77), (9, 1, 1), (5, 3, 5)]:
            velocity, inputs = a_velocity(path, features, context)
            noise, data, t = torch.randn(rows, features), torch.randn(rows, features) + 2, 0.9 * torch.rand(rows)
            contexts = torch.randn(rows, context) if context else None
            exact = copy.deepcopy(velocity).double()
            a, s, da, ds = (each[:, None] for each in PATHS[path](t.double()))
            x = a * data + s * noise
            with torch.no_grad():
                drift, _, standardized, std = exact._gaussian(x, t.double())
                seen = torch.cat([standardized, exact._embedding(t.double(), contexts, None)], 1)
            expected = {"inputs": seen.mT, "std": std.mT, "target": (da * data + ds * noise - drift).mT}
            cases.add(
                "matching", f"{path} {features}, {rows} rows", expected, rows=rows, noise=noise, data=data, t=t,
                context=contexts, field=[features, context, len(velocity.multiples), list(PATHS).index(path)], **inputs,
            )  # fmt: skip


def updates(cases):
    sizes = [1, 17, 4160, 9001, 5, 15, 64, 0]
    for name, factor, scale, kept, largest in [("first step", 1.0, 1.0, 0.99, 1), ("later", 0.5, 0.3, 0.9, 70_000)]:
        steps = 0 if name == "first step" else 7
        inputs = {"count": len(sizes) + 1, "adam": torch.tensor([0.9, 0.999, 1e-8]).double()}
        expected, squares = {}, 0.0
        for i, size in enumerate([*sizes, largest]):
            value, average, mean = torch.randn(3, size)
            square, grad = torch.rand(size), torch.randn(size) * 10.0 ** (i % 5 - 3)
            if not steps:
                mean, square = torch.zeros(2, size)
            rate, decay = 1e-2 * (i + 1), 0.1 * (i % 2)
            p = value.double().clone().requires_grad_()
            optimizer = torch.optim.AdamW([p], lr=rate * factor, weight_decay=decay)
            state = {"step": torch.tensor(float(steps)), "exp_avg": mean.double(), "exp_avg_sq": square.double()}
            optimizer.state[p] = {key: each.clone() for key, each in state.items()}
            if i != 4:  # which has no gradient, and stays
                p.grad = scale * grad.double()
                squares += float(grad.double().square().sum())
                optimizer.step()
            after = optimizer.state[p]
            p = p.detach()
            inputs |= {
                f"value{i}": value, f"average{i}": average, f"mean{i}": mean, f"square{i}": square,
                f"steps{i}": torch.tensor([float(steps)]), f"size{i}": size,
                f"rates{i}": torch.tensor([rate, decay]).double(), f"grad{i}": None if i == 4 else grad,
            }  # fmt: skip
            expected |= {
                f"value{i}": p, f"average{i}": p + kept * (average - p), f"mean{i}": after["exp_avg"],
                f"square{i}": after["exp_avg_sq"], f"steps{i}": after["step"],
            }  # fmt: skip
        expected["norm"] = squares**0.5
        step = torch.tensor([factor, scale, kept]).double()
        cases.add("update", name, expected, (1e-5, 1e-6), step=step, **inputs)
