"""Flows inside other tools: pickles, torch.func, torch.export, torch.compile, traces, and without the C backend."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, jacrev, stack_module_state, vmap

import diffeo
from cases import needs_compiler, randomise
from diffeo import ops

SMALL = {"hidden": (16, 16), "transforms": 2}
SOUND = {"channels": 4, "layers": 2, "skip": 4}
IMAGE = {"transforms": 1, "hidden": (6,), "scales": 2}
FLOWS = {
    "nice": lambda context: diffeo.nice(5, context, **SMALL),
    "realnvp": lambda context: diffeo.realnvp(5, context, **SMALL),
    "maf": lambda context: diffeo.maf(5, context, **SMALL),
    "iaf": lambda context: diffeo.iaf(5, context, **SMALL),
    "nsf": lambda context: diffeo.nsf(5, context, affine=True, **SMALL),
    "nsf-coupling": lambda context: diffeo.nsf(5, context, structure="coupling", **SMALL),
    "nsf-inverse": lambda context: diffeo.nsf(5, context, structure="inverse", **SMALL),
    "realnvp-image": lambda context: diffeo.realnvp((1, 4, 4), context, **IMAGE),
    "glow-image": lambda context: diffeo.glow((1, 4, 4), context, **IMAGE),
    "wavenet": lambda context: diffeo.wavenet(8, context, cycles=1, hop=4, **SOUND),
    "wavenet-mixture": lambda context: diffeo.wavenet(8, context, cycles=1, hop=4, head="logistics", **SOUND),
    "parallel-wavenet": lambda context: diffeo.parallel_wavenet(4, context, cycles=(1, 1), hop=2, **SOUND),
    "flow-matching": lambda context: diffeo.flow_matching(5, context, hidden=(16, 16)),
    "flow-matching-steps": lambda context: diffeo.flow_matching(5, context, hidden=(16, 16), solver="rk4", steps=8),
}
CASES = [(name, context) for name in FLOWS for context in (0, 3)]
# An adaptive solve decides by the numbers how many steps it takes.
TRACEABLE = [(name, context) for name, context in CASES if name != "flow-matching"]


def make(name, context):
    flow = FLOWS[name](context)
    flow.train()
    x, contexts = inputs(flow, 20)
    flow.log_prob(x, contexts)  # sets what data set
    randomise(flow, 0.5)
    return flow.eval()


def inputs(flow, rows):
    x = torch.randn(rows, *flow.event_shape)
    if len(flow.event_shape) == 3:
        x = x.sigmoid() * 255
    return x, torch.randn(rows, *flow.context_shape) if len(flow.context_shape) else None


def close(a, b, tolerance=2e-4):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * (1 + b.abs().max().item()))


@pytest.fixture(scope="module")
def revived(tmp_path_factory):
    """Pickle every flow after it was used, load all of them in a fresh process, and score there."""
    folder = tmp_path_factory.mktemp("pickles")
    cases = {}
    for name, context in CASES:
        torch.manual_seed(0)
        flow = make(name, context)
        x, contexts = inputs(flow, 6)
        with torch.no_grad():
            results = {native: _scored(flow, x, contexts, native) for native in ("cpu", "reference")}
        flow.log_prob(x, contexts).sum().backward()  # whatever a backward pass leaves behind
        cases[f"{name}-{context}"] = results
        torch.save({"flow": pickle.dumps(flow), "x": x, "context": contexts}, folder / f"{name}-{context}.pt")
        torch.save(flow, folder / f"{name}-{context}.flow")
        try:
            import cloudpickle
        except ImportError:
            continue
        (folder / f"{name}-{context}.cloud").write_bytes(cloudpickle.dumps(flow))
    script = """
        import pickle, sys
        from pathlib import Path
        import torch
        from diffeo import ops
        folder, found = Path(sys.argv[1]), {}
        for path in folder.glob("*.pt"):
            case = torch.load(path)
            flows = {"pickle": pickle.loads(case["flow"])}
            flows["torch"] = torch.load(path.with_suffix(".flow"), weights_only=False)
            if path.with_suffix(".cloud").exists():
                flows["cloudpickle"] = pickle.loads(path.with_suffix(".cloud").read_bytes())
            for by, flow in flows.items():
                for native in ("cpu", "reference"):
                    with torch.no_grad(), ops.using(native):
                        found[path.stem, by, native] = flow.log_prob(case["x"], case["context"])
        torch.save(found, folder / "found")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(folder)], check=True)
    return cases, torch.load(folder / "found")


def _scored(flow, x, contexts, native):
    with ops.using(native):
        return flow.log_prob(x, contexts)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "context"), CASES)
def test_a_flow_pickles_and_scores_to_the_same_bits_in_a_fresh_process(revived, name, context):
    cases, results = revived
    of_case = {key: value for key, value in results.items() if key[0] == f"{name}-{context}"}
    assert {by for _, by, _ in of_case} >= {"pickle", "torch"}
    for (_, by, native), log_prob in of_case.items():
        assert torch.equal(log_prob, cases[f"{name}-{context}"][native]), (by, native)


@pytest.mark.parametrize(("name", "context"), CASES)
def test_a_call_is_the_log_density_and_a_copy_is_free(name, context):
    flow = make(name, context)
    x, contexts = inputs(flow, 4)
    with torch.no_grad():
        assert torch.equal(flow(x, contexts), flow.log_prob(x, contexts))
        again = copy.deepcopy(flow)
        assert torch.equal(again(x, contexts), flow(x, contexts))
        for parameter in again.parameters():
            parameter.add_(0.1)
        assert not torch.equal(again(x, contexts), flow(x, contexts)), "the kernels read the copy's weights"


@pytest.mark.parametrize(("name", "context"), TRACEABLE)
def test_vmap_over_rows_and_over_an_ensemble(name, context):
    flows = [make(name, context) for _ in range(3)]
    x, contexts = inputs(flows[0], 4)
    with torch.no_grad():
        rows = (x,) if contexts is None else (x, contexts)
        assert close(vmap(flows[0])(*rows), flows[0](*rows))
        parameters, buffers = stack_module_state(flows)

        def one(parameters, buffers):
            return functional_call(flows[0], (parameters, buffers), rows)

        for scored, flow in zip(vmap(one)(parameters, buffers), flows, strict=True):
            assert close(scored, flow(*rows))


@pytest.mark.parametrize(("name", "context"), CASES)
def test_jacobians_by_torch_func_equal_autograd(name, context):
    flow = make(name, context)
    x, contexts = inputs(flow, 2)
    rest = () if contexts is None else (contexts,)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(flow(leaf, *rest).sum(), leaf)
    jacobian = jacrev(lambda x: flow(x, *rest))(x)  # (2, 2, *event): rows do not know each other
    assert close(jacobian[0, 0], expected[0], 1e-2)
    assert close(jacobian[1, 1], expected[1], 1e-2)
    assert jacobian[0, 1].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "context"),
    [case for case in TRACEABLE if case[0] != "flow-matching-steps"],  # 20 s each; test_export.py has it
)
def test_an_exported_program_scores_other_rows_and_other_numbers_of_them(name, context):
    flow = make(name, context)
    x, contexts = inputs(flow, 5)
    rest = () if contexts is None else (contexts,)
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(flow, (x, *rest), dynamic_shapes=({0: rows}, *({0: rows} for _ in rest)))
    for count in (2, 9):
        x, contexts = inputs(flow, count)
        rest = () if contexts is None else (contexts,)
        assert close(program.module()(x, *rest), flow(x, *rest).detach())
    x[1].view(-1)[0] = torch.nan
    scored = program.module()(x, *rest)
    assert scored.isnan().tolist() == [False, True, *[False] * 7], "NaN never travels silently"


@pytest.mark.parametrize("name", ["realnvp", "maf", "iaf", "nsf", "realnvp-image", "wavenet"])
def test_a_compiled_flow_is_one_graph(name):
    flow = make(name, 3)
    x, contexts = inputs(flow, 5)
    torch._dynamo.reset()
    compiled = torch.compile(flow, backend="eager", fullgraph=True)
    assert close(compiled(x, contexts), flow(x, contexts))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "context"), TRACEABLE)
def test_a_trace_records_what_the_reference_computes(name, context):
    flow = make(name, context)
    x, contexts = inputs(flow, 5)
    rest = () if contexts is None else (contexts,)
    with torch.no_grad():
        traced = torch.jit.trace(flow, (x, *rest))
        x, contexts = inputs(flow, 5)
        rest = () if contexts is None else (contexts,)
        assert close(traced(x, *rest), flow(x, *rest))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # PyTorch's own, at its first use
def test_forward_mode_derivatives_are_not_lost():
    flow = make("maf", 0)
    x, direction = torch.randn(4, 5), torch.randn(4, 5)
    with torch.no_grad():
        _, derivative = torch.func.jvp(flow, (x,), (direction,))
        with torch.autograd.forward_ad.dual_level():
            dual = flow(torch.autograd.forward_ad.make_dual(x, direction))
            assert close(torch.autograd.forward_ad.unpack_dual(dual).tangent, derivative)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(flow(leaf).sum(), leaf)
    assert close(derivative, (gradient * direction).sum(1), 1e-3)


def test_rows_that_are_not_finite_are_nan_where_nothing_can_be_raised():
    flow = make("maf", 0)
    x = torch.randn(4, 5)
    x[2, 1] = torch.inf
    assert vmap(flow)(x).isnan().tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="first in row 2"):
        flow(x)


def test_an_adaptive_solve_says_that_it_cannot_be_traced():
    flow = make("flow-matching", 0)
    with pytest.raises(ValueError, match="expected a solver of fixed steps"), torch.no_grad():
        vmap(flow)(torch.randn(4, 5))


@needs_compiler
def test_while_anything_traces_the_reference_runs(monkeypatch):
    flow = make("maf", 0)
    called = []
    cpu = ops.dispatch.cpu
    for name in ("network", "mapped_network", "map_values"):
        original = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *a, o=original, **k: called.append(1) or o(*a, **k))
    x = torch.randn(3, 5)
    with ops.using("cpu"):
        flow(x)
        assert called
        del called[:]
        vmap(flow)(x)
        torch.export.export(flow, (x,))
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            flow(x)
    assert not called
    assert counter.get_total_flops() > 0, "a counter of operations sees them"


# Round trips, log-dets, both directions; `DIFFEO_NATIVE=0 make test` has the reference
# compute all the rest.
LAWS = "round_trip or log_det_is or incremental"


@pytest.mark.slow
def test_without_the_c_backend_the_laws_hold(tmp_path):
    """Its folder deleted, the package imports, and the tests of values pass."""
    source = Path(diffeo.__file__).parent
    shutil.copytree(source, tmp_path / "diffeo", ignore=shutil.ignore_patterns("__pycache__", "cpu"))
    assert not (tmp_path / "diffeo" / "ops" / "cpu").exists()
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("laws", "flow")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LAWS, *tests],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
