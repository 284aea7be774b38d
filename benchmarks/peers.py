"""The same flow in every library, behind the same three functions: log_prob, train_step, sample.

`python benchmarks/peers.py` builds each model in each library and checks that it is the one claimed: parameters and
unmasked weights against the formulas, a density that integrates to 1 and agrees with the samples, which side is slow.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

FAMILIES = ("maf", "nsf", "realnvp", "nsf-coupling")
OWN = ("diffeo", "reference")  # by the kernels where they won their race, and in PyTorch's operations alone
LIBRARIES = (*OWN, "zuko", "nflows", "normflows", "flowjax", "freia")
DISTRIBUTIONS = {"freia": "FrEIA"}


@dataclass(frozen=True)
class Spec:
    """One model: `transforms` layers over D features, conditioners with hidden layers (H, H) and ReLU.

    `maf` and `nsf` are autoregressive with the order reversed between layers; `realnvp` and `nsf-coupling` transform
    one half given the other, halves alternating. Splines have `bins` bins on [-bound, bound], the identity outside.
    """

    family: str
    features: int
    hidden: int
    transforms: int = 5
    bins: int = 8
    bound: float = 5.0
    lr: float = 1e-4
    device: str = "cpu"

    @property
    def coupling(self) -> bool:
        """Whether the layers are couplings."""
        return self.family in ("realnvp", "nsf-coupling")

    @property
    def spline(self) -> bool:
        """Whether the univariate map is a spline."""
        return self.family.startswith("nsf")

    @property
    def per_feature(self) -> int:
        """Parameters of the univariate map per feature: shift and scale, or widths, heights and inner slopes."""
        return 3 * self.bins - 1 if self.spline else 2

    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each dense layer of one conditioner."""
        kept = self.features // 2 if self.coupling else self.features
        changed = self.features - kept if self.coupling else self.features
        return [(kept, self.hidden), (self.hidden, self.hidden), (self.hidden, changed * self.per_feature)]

    def parameters(self) -> int:
        """Weights and biases of all conditioners, masked ones included."""
        return self.transforms * sum(i * o + o for i, o in self.layers())

    def multiply_adds(self) -> int:
        """Multiply-adds per row that the masks leave, with hidden degrees spread evenly over 1..D-1."""
        if self.coupling:
            return self.transforms * sum(i * o for i, o in self.layers())
        inputs = np.arange(1, self.features + 1)
        hidden = np.round(np.linspace(1, max(1, self.features - 1), self.hidden))
        first = (hidden[:, None] >= inputs).sum()
        middle = (hidden[:, None] >= hidden).sum()
        last = (inputs[:, None] > hidden).sum() * self.per_feature
        return int(self.transforms * (first + middle + last))


class TorchModel:
    """A PyTorch flow with its Adam (the fused one, for every library alike)."""

    def __init__(
        self,
        spec: Spec,
        module: nn.Module,
        log_prob: Callable[[torch.Tensor], torch.Tensor],
        sample: Callable[[int], torch.Tensor],
    ) -> None:
        self.spec, self.module = spec, module.to(spec.device)
        self._log_prob, self._sample = log_prob, sample
        self.optimizer = torch.optim.Adam(module.parameters(), lr=spec.lr, fused=True)

    def array(self, x: np.ndarray) -> torch.Tensor:
        """The batch as this library wants it, float32."""
        return torch.as_tensor(x, dtype=torch.float32, device=self.spec.device)

    def wait(self) -> None:
        """Returns when the device has finished."""
        if self.spec.device != "cpu":
            torch.cuda.synchronize()

    @torch.no_grad()
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log-density of each row of x (N, D), without gradients."""
        result = self._log_prob(x)
        self.wait()
        return result

    def train_step(self, x: torch.Tensor) -> torch.Tensor:
        """One step of Adam on the mean negative log-likelihood; returns it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = -self._log_prob(x).mean()
        loss.backward()
        self.optimizer.step()
        self.wait()
        return loss.detach()

    @torch.no_grad()
    def sample(self, n: int) -> torch.Tensor:
        """Draws (n, D)."""
        result = self._sample(n)
        self.wait()
        return result

    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def active_weights(self) -> int:
        """Weights that are not masked away, the same as multiply-adds per row; 0 where there are no masks."""
        masks = [m.mask for m in self.module.modules() if isinstance(m, nn.Linear) and hasattr(m, "mask")]
        return int(sum(m.sum() for m in masks))


class FlowJaxModel:
    """A FlowJAX distribution, every function compiled by `jit`; the train step gives its buffers away (donation)."""

    def __init__(self, spec: Spec, flow: Any) -> None:
        import equinox as eqx
        import jax
        import optax
        import paramax

        self.spec, self._jax, self._eqx = spec, jax, eqx
        self.key = jax.random.key(1)
        self.params, self.static = eqx.partition(
            flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
        )
        optimizer = optax.adam(spec.lr)
        self.state = optimizer.init(self.params)
        static = self.static

        def loss(params: Any, x: Any) -> Any:
            return -eqx.combine(params, static).log_prob(x).mean()

        def step(params: Any, state: Any, x: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(params, x)
            updates, state = optimizer.update(gradient, state, params)
            return eqx.apply_updates(params, updates), state, value

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._log_prob = jax.jit(lambda params, x: eqx.combine(params, static).log_prob(x))
        self._sample = jax.jit(lambda params, key, n: eqx.combine(params, static).sample(key, (n,)), static_argnums=2)

    def array(self, x: np.ndarray) -> Any:
        """The batch as this library wants it, float32."""
        return self._jax.numpy.asarray(x, dtype="float32")

    def log_prob(self, x: Any) -> Any:
        """Log-density of each row of x (N, D)."""
        return self._log_prob(self.params, x).block_until_ready()

    def train_step(self, x: Any) -> Any:
        """One step of Adam on the mean negative log-likelihood; returns it."""
        self.params, self.state, loss = self._step(self.params, self.state, x)
        self._jax.block_until_ready(self.params)
        return loss

    def sample(self, n: int) -> Any:
        """Draws (n, D)."""
        self.key, key = self._jax.random.split(self.key)
        return self._sample(self.params, key, n).block_until_ready()

    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(leaf.size for leaf in self._jax.tree_util.tree_leaves(self.params))

    def active_weights(self) -> int:
        """Not read: its masks lie in closures."""
        return 0


def build_diffeo(spec: Spec) -> TorchModel:
    """Diffeo's own recipes, without their standardization, which the other libraries leave to the user."""
    import diffeo

    arguments: dict[str, Any] = {"transforms": spec.transforms, "hidden": (spec.hidden, spec.hidden)}
    arguments |= {"activation": "relu", "residual": False, "preprocess": ()}  # as the other libraries
    if spec.spline:
        structure = "coupling" if spec.coupling else "autoregressive"
        arguments |= {"bins": spec.bins, "bound": spec.bound, "structure": structure}
    flow = diffeo.recipes.build("nsf" if spec.spline else spec.family, {"features": spec.features, **arguments})
    return TorchModel(spec, flow, flow.log_prob, flow.sample)


def build_reference(spec: Spec) -> TorchModel:
    """The same without kernels."""
    from diffeo import ops

    model = build_diffeo(spec)

    def alone(call: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(argument: Any) -> torch.Tensor:
            with ops.using("reference"):
                return call(argument)

        return run

    return TorchModel(spec, model.module, alone(model._log_prob), alone(model._sample))


def build_zuko(spec: Spec) -> TorchModel:
    """zuko: orders alternate between ascending and descending, checkered coupling masks alternate."""
    import zuko

    arguments: dict[str, Any] = {"transforms": spec.transforms, "hidden_features": (spec.hidden, spec.hidden)}
    if spec.spline and spec.coupling:  # zuko has no class for it; this is how its documentation composes one
        arguments["univariate"] = zuko.transforms.MonotonicRQSTransform
        arguments["shapes"] = [(spec.bins,), (spec.bins,), (spec.bins - 1,)]
    elif spec.spline:
        arguments["bins"] = spec.bins
    classes = {"maf": zuko.flows.MAF, "nsf": zuko.flows.NSF}
    flow = classes.get(spec.family, zuko.flows.RealNVP)(spec.features, **arguments)
    return TorchModel(spec, flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


class _Mlp(nn.Sequential):
    """A plain conditioner for the couplings of nflows and normflows; both call it with a context that is None here."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.hidden_features = hidden  # both divide the spline's widths and heights by its root

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


def _halves(spec: Spec, layer: int) -> torch.Tensor:
    """Coupling mask of a layer: 1 for the half that changes, halves alternating."""
    second = torch.arange(spec.features) >= spec.features // 2
    return (second if layer % 2 == 0 else ~second).int()


def build_nflows(spec: Spec) -> TorchModel:
    """nflows: feed-forward MADE (its default is residual), one block, so that the hidden layers are (H, H)."""
    from nflows import transforms as t
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    def made(kind: Any, **extra: Any) -> Any:
        return kind(
            features=spec.features, hidden_features=spec.hidden, num_blocks=1, use_residual_blocks=False, **extra
        )

    def conditioner(inputs: int, outputs: int) -> nn.Module:
        return _Mlp(inputs, spec.hidden, outputs)

    spline = {"num_bins": spec.bins, "tails": "linear", "tail_bound": spec.bound}
    layers: list[Any] = []
    for i in range(spec.transforms):
        if spec.coupling:
            kind = t.PiecewiseRationalQuadraticCouplingTransform if spec.spline else t.AffineCouplingTransform
            layers.append(kind(_halves(spec, i), conditioner, **(spline if spec.spline else {})))
            continue
        if i:
            layers.append(t.ReversePermutation(spec.features))
        if spec.spline:
            layers.append(made(t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, **spline))
        else:
            layers.append(made(t.MaskedAffineAutoregressiveTransform))
    flow = Flow(t.CompositeTransform(layers), StandardNormal([spec.features]))
    return TorchModel(spec, flow, flow.log_prob, flow.sample)


def build_normflows(spec: Spec) -> TorchModel:
    """normflows: its autoregressive layers score slowly and sample fast, so `Reverse` turns them into a MAF."""
    import normflows as nf
    from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    spline = {"num_bins": spec.bins, "tails": "linear", "tail_bound": spec.bound}
    half = spec.features // 2

    def reversing() -> nn.Module:
        permutation = nf.flows.Permute(spec.features)
        permutation.perm = permutation.inv_perm = torch.arange(spec.features).flip(0)
        return permutation

    def conditioner(inputs: int, outputs: int) -> nn.Module:
        return _Mlp(inputs, spec.hidden, outputs)

    def layer(i: int) -> nn.Module:
        if spec.family == "realnvp":
            return nf.flows.AffineCouplingBlock(_Mlp(half, spec.hidden, 2 * (spec.features - half)), scale_map="exp")
        if spec.family == "nsf-coupling":
            return nf.flows.Reverse(PiecewiseRationalQuadraticCoupling(_halves(spec, i), conditioner, **spline))
        made = {"features": spec.features, "hidden_features": spec.hidden, "num_blocks": 1}
        made |= {"use_residual_blocks": False}
        if spec.spline:
            made |= {"init_identity": False, **spline}
            return nf.flows.Reverse(MaskedPiecewiseRationalQuadraticAutoregressive(**made))
        return nf.flows.Reverse(nf.flows.MaskedAffineAutoregressive(**made))

    layers: list[nn.Module] = []
    for i in range(spec.transforms):
        if i and spec.family != "nsf-coupling":
            layers.append(nf.flows.Permute(spec.features, "swap") if spec.coupling else reversing())
        layers.append(layer(i))
    base = nf.distributions.DiagGaussian(spec.features, trainable=False)
    flow = nf.NormalizingFlow(base, layers)
    return TorchModel(spec, flow, flow.log_prob, lambda n: flow.sample(n)[0])


def build_flowjax(spec: Spec) -> FlowJaxModel:
    """FlowJAX: as its premade flows, but with the order reversed between layers instead of shuffled.

    Its spline also learns the slopes at the two ends: 3 bins + 1 parameters per feature instead of 3 bins - 1.
    """
    import equinox as eqx
    import jax
    import paramax
    from flowjax import bijections as b
    from flowjax.distributions import Normal, Transformed

    if spec.spline:
        transformer: Any = b.RationalQuadraticSpline(knots=spec.bins - 1, interval=spec.bound)
    else:
        transformer = b.Affine()
    common = {"transformer": transformer, "dim": spec.features, "nn_width": spec.hidden, "nn_depth": 2}

    def layer(key: Any) -> Any:
        if spec.coupling:
            bijection: Any = b.Coupling(key, untransformed_dim=spec.features // 2, **common)
        else:
            bijection = b.MaskedAutoregressive(key, **common)
        return b.Chain([bijection, b.Flip((spec.features,))])

    layers = eqx.filter_vmap(layer)(jax.random.split(jax.random.key(0), spec.transforms))
    base = paramax.non_trainable(Normal(jax.numpy.zeros(spec.features)))
    return FlowJaxModel(spec, Transformed(base, b.Invert(b.Scan(layers))))  # inverted: the density is the parallel side


def build_freia(spec: Spec) -> TorchModel:
    """FrEIA (couplings only): one block is two couplings, each with one network for scale and shift together."""
    if spec.family != "realnvp" or spec.transforms % 2:
        raise NotImplementedError("only RealNVP with an even number of transforms")
    import FrEIA.framework as framework
    import FrEIA.modules as modules

    flow = framework.SequenceINN(spec.features)
    for _ in range(spec.transforms // 2):
        flow.append(modules.GLOWCouplingBlock, subnet_constructor=lambda i, o: _Mlp(i, spec.hidden, o), clamp=2.0)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        z, log_det = flow(x)
        return log_det - 0.5 * z.square().sum(-1) - 0.5 * spec.features * float(np.log(2 * np.pi))

    def sample(n: int) -> torch.Tensor:
        return flow(torch.randn(n, spec.features, device=spec.device), rev=True, jac=False)[0]

    return TorchModel(spec, flow, log_prob, sample)


BUILDERS: dict[str, Callable[[Spec], Any]] = {name: globals()[f"build_{name}"] for name in LIBRARIES}


def build(library: str, spec: Spec, seed: int = 0) -> Any:
    """The model in a library; ImportError without the library, NotImplementedError where it has no such model."""
    torch.manual_seed(seed)
    return BUILDERS[library](spec)


def use_threads(threads: int | None) -> int:
    """Gives torch and JAX the same number of threads; to be called before JAX is first imported.

    XLA sizes its pool by the processors that the process may use, so fewer threads means fewer processors for all.
    """
    available = list(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        available = sorted(os.sched_getaffinity(0))
    threads = min(threads or len(available), len(available))
    if threads < len(available) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available[:threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    torch.set_num_threads(threads)
    return threads


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Version of torch, of each library at hand, and of jax; '-' for what is not installed."""
    result = {"torch": torch.__version__}
    for name in (*libraries, *(["jax"] if "flowjax" in libraries else [])):
        try:
            result[name] = importlib.metadata.version(DISTRIBUTIONS.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            result[name] = "-"
    return result


def law(spec: Spec, library: str) -> str:
    """Trains the 2-D model on a bent cloud; the mass of its density on a grid, and grid mean against sample mean."""
    random = np.random.default_rng(0)
    model = build(library, replace(spec, features=2, lr=3e-3))
    for _ in range(100):
        x = random.standard_normal((512, 2)) * 0.5
        model.train_step(model.array(np.stack([x[:, 0] + x[:, 1] ** 2, x[:, 1] + 0.5], -1)))
    axis = np.linspace(-8, 8, 641)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(np.asarray(model.log_prob(model.array(grid)), dtype=np.float64)) * (axis[1] - axis[0]) ** 2
    means = density @ grid, np.asarray(model.sample(20000)).mean(0)
    return f"2-D mass {density.sum():.4f}, |grid mean - sample mean| {np.abs(means[0] - means[1]).max():.3f}"


def check(spec: Spec, library: str) -> str:
    """One line on a model: parameters, unmasked weights, the 2-D law, milliseconds of each direction."""
    model = build(library, spec)
    x = model.array(np.random.default_rng(0).standard_normal((256, spec.features)))
    took = []
    for call in (lambda: model.log_prob(x), lambda: model.sample(256)):
        call()  # compiles
        start = time.perf_counter()
        finite = bool(np.isfinite(np.asarray(call())).all())
        took.append(f"{1e3 * (time.perf_counter() - start):.1f} ms{'' if finite else ' NOT FINITE'}")
    weights = f"  unmasked {model.active_weights():,d} ({spec.multiply_adds():,d})" if model.active_weights() else ""
    return (
        f"{library:10s} {spec.family:12s} parameters {model.parameters():,d} (formula {spec.parameters():,d}){weights}"
        f"  {law(spec, library)}  log_prob {took[0]}, sample {took[1]}"
    )


def main() -> None:
    """Checks every model of every library, or prints the versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", action="store_true", help="print the versions and stop")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    arguments = parser.parse_args()
    use_threads(None)
    if arguments.versions:
        print("  ".join(f"{name} {version}" for name, version in versions().items()))
        return
    for family in FAMILIES:
        spec = Spec(family, arguments.features, arguments.hidden, transforms=6)
        for library in arguments.libraries:
            try:
                print(check(spec, library), flush=True)
            except (ImportError, NotImplementedError, AttributeError) as error:
                print(f"{library:10s} {family:12s} not available: {error}", flush=True)


if __name__ == "__main__":
    main()
