"""What is built is raced against the reference, and ``diffeo info --machine`` says what came of it."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
import torch

from building import FUNCTIONS, a_place, again, needs_compiler, refused
from cases import needs_compiler as needs_kernels
from diffeo import race
from diffeo.cli import main
from diffeo.nets import MLP
from diffeo.ops import dispatch, using
from diffeo.ops.cpu import build


class Clock:
    """Time passes only for who computes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


FAST, SLOW = 0.001, 0.003
CLOCK = Clock()


def contender(cpu=FAST, reference=FAST, wrong=None):
    """Take as long as a backend is said to take, or in turn as long as a list says; the kernels add ``wrong``."""

    def make():
        times = iter([cpu] * 1000 if isinstance(cpu, float) else [*cpu, *[FAST] * 1000])

        def run():
            kernels = dispatch._CHOSEN.get() == "cpu"
            CLOCK.now += next(times) if kernels else reference
            return [torch.ones(3) + (wrong if wrong is not None and kernels else 0)]

        return run

    return make


@needs_kernels
def test_every_kind_of_kernels_is_raced_and_right():
    result = race.race()
    assert tuple(result) == build.KINDS
    for kind, each in result.items():
        assert "error" not in each, (kind, each)
        assert each["equal"], kind


@needs_kernels
def test_every_kind_is_asked_for_somewhere(monkeypatch):
    """A kind that no operation asks for would be raced in vain, and the reference would race against itself."""
    asked = set()
    monkeypatch.setattr(build, "_ADOPTED", [build.kernels()])
    monkeypatch.setattr(dispatch.cpu, "usable", lambda kind, forced: bool(asked.add(kind)) or build.usable(kind))
    for kind, cases in race.CONTENDERS.items():
        for make in cases.values():
            asked.clear()
            with using("cpu"):
                make()()
            assert kind in asked


@pytest.mark.parametrize(
    ("cases", "used"),
    [
        ({"fast": contender(FAST, SLOW)}, True),
        ({"slow": contender(SLOW, FAST)}, False),
        ({"equally fast": contender()}, True),
        ({"fast": contender(FAST, SLOW), "slow": contender(SLOW, FAST), "slower": contender(2 * SLOW, FAST)}, False),
    ],
    ids=lambda cases: " ".join(cases) if isinstance(cases, dict) else "",
)
def test_the_slower_one_is_not_used(cases, used):
    result = race.race({"kind": cases}, CLOCK)["kind"]
    assert result["used"] is used
    assert result["equal"]
    assert set(result["cases"]) == set(cases)


def test_who_was_interrupted_has_another_round():
    """The first call is not timed, and of the others the best one counts."""
    result = race.race({"kind": {"case": contender([SLOW, SLOW, 1.3 * FAST, FAST])}}, CLOCK)["kind"]
    assert result["used"]
    assert result["ratio"] == 1


def test_who_lost_has_another_chance():
    pauses = iter([[SLOW] * 9])
    result = race.race({"kind": {"case": lambda: contender(next(pauses, FAST), 0.9 * FAST)()}}, CLOCK)["kind"]
    assert result["ratio"] == pytest.approx(1 / 0.9, abs=1e-3)


@pytest.mark.parametrize("wrong", [0.1, torch.tensor([0, torch.nan, 0]), torch.inf])
def test_what_is_wrong_is_not_used_however_fast(wrong):
    result = race.race({"kind": {"right": contender(FAST, SLOW), "wrong": contender(FAST, SLOW, wrong)}}, CLOCK)["kind"]
    assert not result["equal"]
    assert not result["used"]


@pytest.mark.parametrize(("kinks", "equal"), [([0], True), ([0, 1], False), ([0, 2], False), ([1, 2], True)])
def test_rounding_at_a_kink_is_no_wrong_value(kinks, equal):
    """relu of numbers that are zero but for rounding has another gradient, with few of the random numbers."""
    generator = torch.Generator()
    at_kink = [torch.rand(3, generator=generator.manual_seed(seed)) for seed in kinks]

    def make():
        x = torch.rand(3)
        rounding = 1e-9 if dispatch._CHOSEN.get() == "cpu" else -1e-9
        x = (0 * x + rounding if any(map(x.equal, at_kink)) else x).requires_grad_()

        def run():
            CLOCK.now += FAST
            return torch.autograd.grad(x.relu().sum(), x)

        return run

    assert race.race({"kind": {"relu": make}}, CLOCK)["kind"]["equal"] is equal


def test_what_is_infinite_is_wrong_with_any_numbers():
    """There is no kink at which nothing is finite: even with few of the random numbers it is no rounding."""
    first = torch.rand(3, generator=torch.Generator().manual_seed(0))

    def make():
        bad = torch.rand(3).equal(first) and dispatch._CHOSEN.get() == "cpu"

        def run():
            CLOCK.now += FAST
            return [torch.tensor([1.0, torch.nan if bad else 1.0])]

        return run

    assert not race.race({"kind": {"case": make}}, CLOCK)["kind"]["equal"]


def test_what_raises_is_not_used():
    def make():
        raise MemoryError("none left")

    result = race.race({"kind": {"right": contender(FAST, SLOW), "bad": make}, "other": {"right": contender()}}, CLOCK)
    assert result["kind"] == {"used": False, "equal": False, "error": "bad: MemoryError: none left"}
    assert result["other"]["used"]


@pytest.fixture
def place(monkeypatch, tmp_path):
    yield from a_place(monkeypatch, tmp_path)


@pytest.fixture
def proved(place, monkeypatch):
    """A build whose race ends with these kinds."""

    def end(**kinds):
        monkeypatch.setattr(build, "_prove", lambda built: {"kinds": kinds, "seconds": 0.0})

    return end


def lost(ratio=2.0, equal=True):
    return {"used": False, "equal": equal, "ratio": ratio, "cases": {"case": ratio}}


WON = {"used": True, "equal": True, "ratio": 0.5, "cases": {"case": 0.5}}


@needs_compiler
def test_who_lost_is_not_used_which_is_said_once_and_kept(proved, monkeypatch, caplog):
    proved(network=lost(), map=WON)
    assert not build.usable("network")
    assert build.usable("network", forced=True)
    assert build.usable("map")
    assert build.usable("a kind without a race")
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.getMessage() == "diffeo: kernels that take longer here than plain PyTorch are not used: network (2.0x)"
    caplog.clear()
    proved()  # what is kept is not raced again
    assert again().lost == {"network"}
    assert not caplog.records
    monkeypatch.setenv("DIFFEO_NATIVE", "force")
    assert not again().lost
    assert build.usable("network")


@needs_compiler
def test_who_lost_leaves_the_operation_to_the_reference(proved):
    proved(network=lost())
    assert dispatch.kernels("network", torch.zeros(1)) is None
    with using("cpu"):
        assert dispatch.kernels("network", torch.zeros(1)) is dispatch.cpu
    with torch.no_grad():  # the library here has no real functions, so only the reference can be right
        net = MLP(2, 3, (4,))
        net.layers[-1].bias.fill_(1.0)
        assert torch.equal(net(torch.zeros(5, 2)), torch.ones(5, 3))


@needs_compiler
def test_wrong_values_are_warned_of(proved):
    proved(network=lost(equal=False), map=WON)
    with pytest.warns(RuntimeWarning, match="gave wrong values and are not used: network"):
        assert not build.usable("network")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again().lost == {"network"}


REAL_PROVE = build._prove


@needs_compiler
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("raise(SIGILL)", r"what was built crashed, killed by signal \d+"),
        ("exit(3)", "could not be tried: exit status 3"),
        ("for (;;) sleep(1)", "did not end within"),
    ],
)
def test_a_library_that_crashes_does_so_in_another_process(place, monkeypatch, more, match):
    (place / "sources" / "first.c").write_text(
        f"#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n{FUNCTIONS}\n"
        f"__attribute__((constructor)) static void run(void) {{ {more}; }}\n"
    )
    monkeypatch.setattr(build, "_prove", REAL_PROVE)
    if "sleep" in more:
        monkeypatch.setattr(build, "_RACE_SECONDS", 2.0)
    refused(match)
    assert "tried again a day later" in refused(match)


@needs_compiler
def test_a_library_that_computes_nonsense_is_not_used(place, monkeypatch):
    """Whether it crashes in its race or just gives wrong values."""
    monkeypatch.setattr(build, "_prove", REAL_PROVE)
    with pytest.warns(RuntimeWarning, match="wrong values|crashed"):
        result = build.kernels()
    assert result.library is None or result.lost == set(build.KINDS)


@needs_compiler
def test_the_current_folder_is_not_imported_from(place, monkeypatch):
    (place / "torch.py").write_text("raise SystemExit('planted')")
    (place / "json.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(place)
    (place / "sources" / "first.c").write_text("int nothing;")
    monkeypatch.setattr(build, "_prove", REAL_PROVE)
    refused("undefined symbol")


def say(capsys, *argv, code=0):
    """Run ``diffeo info`` and return what it says on stdout, or on stderr where it refuses."""
    capsys.readouterr()
    assert main(["info", *argv]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


@needs_kernels
def test_info_describes_the_machine(capsys):
    said = json.loads(say(capsys, "--machine", "--json"))
    assert said["processor"]
    assert said["threads"] == torch.get_num_threads()
    assert said["torch"]["version"] == torch.__version__
    kernels = said["kernels"]
    assert kernels["reason"] is None
    assert kernels["compiler"]
    assert kernels["instructions"] != "unknown"
    assert set(kernels["kinds"]) == set(build.KINDS)
    assert set(said["gflops"]) == {"torch", "dense", "masked"}
    assert min(said["gflops"].values()) > 0
    text = say(capsys, "--machine")
    for part in (said["processor"], kernels["version"], kernels["instructions"], "GFLOP/s", *build.KINDS):
        assert part in text


@needs_compiler
def test_info_says_which_kernels_lost(proved, capsys):
    proved(network=lost(), map=WON)
    text = say(capsys, "--machine")
    rows = [line.split() for line in text.splitlines()]
    assert ["network", "no", "2.00", "of", "PyTorch's"] in rows
    assert ["map", "yes", "0.50", "of", "PyTorch's"] in rows
    assert ["ode", "yes", "not", "measured"] in rows


def test_info_says_why_there_are_no_kernels(place, monkeypatch, capsys):
    monkeypatch.setenv("DIFFEO_NATIVE", "0")
    text = say(capsys, "--machine")
    assert "switched off by DIFFEO_NATIVE=0" in text
    assert "kernels" not in text.split("GFLOP/s")[1]
    monkeypatch.delenv("DIFFEO_NATIVE")
    monkeypatch.setenv("CC", "no-such-compiler")
    build.kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="names no program"):
        said = json.loads(say(capsys, "--machine", "--json"))
    assert "names no program" in said["kernels"]["reason"]
    assert set(said["gflops"]) == {"torch"}


@pytest.mark.parametrize("argv", [[], ["run", "--machine"]])
def test_info_is_of_a_run_or_of_the_machine(capsys, argv):
    assert say(capsys, *argv, code=2) == "diffeo: expected either RUN or --machine; see diffeo info --help\n"


def test_a_warning_on_the_command_line_is_one_line(place):
    environment = {**os.environ, "CC": "no-such-compiler"}
    command = [sys.executable, "-c", "from diffeo.cli import main; main()", "info", "--machine", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kernels"]["reason"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("diffeo: warning: the kernels could not be built by no-such-compiler")
