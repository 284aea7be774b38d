"""The commands: here are their options; ``diffeo.commands`` has the functions of these names, which do the work."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from diffeo.cli.parse import (
    LIMITS,
    Data,
    Decimal,
    Device,
    Figures,
    Force,
    Json,
    Missing,
    Na,
    NewRun,
    Out,
    Run,
    Seed,
    Sep,
    TrainingSeed,
    arguments_of,
)
from diffeo.errors import UserError
from diffeo.legible import legible
from diffeo.limits import raised
from diffeo.progress import Rows

app = Typer(
    help="Normalizing flows: learn the density of a table, of images or of audio, score them, draw new ones.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED = 130  # the exit code
LIMITED = {
    "columns": ("fit", "posterior"),
    "pixels": ("fit", "score", "inpaint", "distill", "check", "report"),
    "bytes": None,
}


def _command(*, counts: str | None = None, trains: bool = False) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Make a command of a signature: its options go to the function of ``diffeo.commands`` of its name, by name.

    Args:
        counts: the verb of a bar that counts rows; of a command whose rows go to stdout unless ``out`` is given.
        trains: whether it makes a run directory: it shows its progress, says notes, and may be interrupted.
    """

    def decorate(signature: Callable[..., None]) -> Callable[..., int]:
        name = signature.__name__

        @wraps(signature)
        def command(*, as_json: bool, **options: Any) -> int:
            given = {name: options.pop(f"max_{name}") for name in allowed}
            with raised(**{name: number for name, number in given.items() if number is not None}):
                return run(as_json, options)

        def run(as_json: bool, options: dict[str, Any]) -> int:
            results_on_stdout = counts is not None and str(options["out"] or "-") == "-"
            if as_json and results_on_stdout:
                raise UserError("rows and JSON cannot both go to stdout; give --out FILE with --json")
            arguments = arguments_of(options)

            from diffeo import commands

            if trains:
                arguments |= {"progress": True, "say": _note}
            with Rows(counts) if counts else nullcontext() as bar:
                if bar is not None:
                    arguments["progress"] = bar
                try:
                    summary = getattr(commands, name)(**arguments)
                except KeyboardInterrupt:  # with folds: some of the models have not been trained at all
                    if not trains or not (Path(options["out"]) / "train").is_dir():
                        raise
                    return _interrupted(name, options, "nothing is lost")
            if trains and int(os.environ.get("RANK", "0")) > 0:
                return 0  # under torchrun the first process speaks for all
            _print(name, summary, as_json, results_on_stdout)
            if summary.get("report"):
                _open(summary["report"])
            if not trains or summary["stopped"] != "interrupted":
                return 0
            return _interrupted(name, options, f"the best so far is in {options['out']}")

        # Options that every command has that reads data of a kind; typer reads the signature and the annotations.
        allowed = [limit for limit, commands in LIMITED.items() if commands is None or name in commands]
        shape = inspect.signature(signature, eval_str=True)
        added = [
            inspect.Parameter(
                f"max_{limit}", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=LIMITS[limit]
            )
            for limit in allowed
        ]
        parameters = [*shape.parameters.values(), *added]
        command.__signature__ = shape.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": int}
        return app.command()(command)

    return decorate


def _interrupted(name: str, options: Mapping[str, Any], what: str) -> int:
    source, out = options.get("run") or options["source"], str(options["out"])
    words = map(str, source if isinstance(source, list) else [source])
    again = shlex.join(["diffeo", name, *words, "--out", out, "--resume"])
    print(legible(f"diffeo: interrupted; {what}; go on with: {again}"), file=sys.stderr)
    return INTERRUPTED


def _print(name: str, summary: Mapping[str, Any], as_json: bool, results_on_stdout: bool = False) -> None:
    from diffeo.cli import show
    from diffeo.training.run import plain

    if as_json:
        print(json.dumps(plain(summary), indent=2).replace("\x7f", "\\u007f"))  # all else is escaped already
    else:
        said = getattr(show, name)(summary)
        print("\n".join(map(legible, said.split("\n"))), file=sys.stderr if results_on_stdout else sys.stdout)


def _open(page: str) -> None:
    """Show a page in the user's browser; where there is none, say where it is."""
    import webbrowser

    path = Path(page).resolve()
    if not webbrowser.open(path.as_uri()):
        _note(f"no browser was found; open {path}")


def _note(text: str) -> None:
    print(f"note: {legible(text)}", file=sys.stderr)


def _version(asked: bool) -> None:
    if asked:
        from diffeo import __version__

        print(f"diffeo {__version__}")
        raise Exit


@app.callback()
def _root(
    version: Annotated[bool, Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@_command(trains=True)
def fit(
    source: Data,
    out: NewRun,
    model: Annotated[
        str | None,
        Option(
            help="nice, realnvp, glow, maf, iaf, nsf, wavenet, flow-matching or vae; chosen for the data by default."
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        Option(
            help="Columns that the density is conditional on; of images: label; of audio: mel, label.", metavar="COLS"
        ),
    ] = None,
    drop: Annotated[list[str] | None, Option(help="Columns to leave out.", metavar="COLS")] = None,
    missing: Missing = False,
    categorical: Annotated[
        list[str] | None, Option(help="Columns that hold categories, as codes say.", metavar="COLS")
    ] = None,
    integer: Annotated[list[str] | None, Option(help="Columns of whole numbers.", metavar="COLS")] = None,
    continuous: Annotated[list[str] | None, Option(help="Columns with a smooth density.", metavar="COLS")] = None,
    dates: Annotated[list[str] | None, Option("--date", help="Columns of dates or times.", metavar="COLS")] = None,
    bounds: Annotated[
        list[str] | None,
        Option(help="Ends of a column of numbers, either may be empty: no density beyond.", metavar="COL=LOW:HIGH"),
    ] = None,
    weights: Annotated[
        str | None, Option(help="The column that says how much each row counts; not modelled.", metavar="COL")
    ] = None,
    na: Na = None,
    sep: Sep = None,
    decimal: Decimal = None,
    test: Annotated[
        float | None, Option(help="Keep this fraction of the rows for 'diffeo check' alone.", metavar="FRACTION")
    ] = None,
    folds: Annotated[
        int | None,
        Option(help="Hold out so many parts of a table in turn, each of one model.  [default: 5; of large tables 1]"),
    ] = None,
    memory: Annotated[
        float | None,
        Option(help="Of a table, keep so much in memory; of more, nothing.  [default: 2]", metavar="GIB"),
    ] = None,
    size: Annotated[str | None, Option(help="Bring pictures to this side, or height,width.", metavar="N[,N]")] = None,
    rate: Annotated[int | None, Option(help="Bring audio to so many samples per second.", metavar="HZ")] = None,
    crop: Annotated[
        float | None, Option(help="Seconds of audio in an example.  [default: 1]", metavar="SECONDS")
    ] = None,
    mels: Annotated[int | None, Option(help="Log-mel channels.  [default: 40; from 12 kHz on: 80]")] = None,
    label_pattern: Annotated[
        str | None, Option(help="Finds a label in the name of a recording.", metavar="REGEX")
    ] = None,
    epochs: Annotated[int | None, Option(help="Passes over the data at most.")] = None,
    minutes: Annotated[float | None, Option(help="Minutes of training at most.")] = None,
    batch_size: Annotated[
        int | None, Option(help="Rows per step.  [default: 512; images: 64 or 128; audio: 8]")
    ] = None,
    accumulate: Annotated[int | None, Option(help="Divide a step into so many chunks, to save memory.")] = None,
    lr: Annotated[float | None, Option(help="The highest learning rate.  [default: 0.01, or 0.002]")] = None,
    hidden: Annotated[str | None, Option(help="Widths of the hidden layers.", metavar="N,N,...")] = None,
    transforms: Annotated[int | None, Option(help="How many transforms.")] = None,
    arguments: Annotated[
        list[str] | None,
        Option("--set", help="Another argument of the model, e.g. --set bins=16.", metavar="NAME=VALUE"),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Continue a run, with its own settings; longer with a larger budget.")
    ] = False,
    force: Annotated[bool, Option("--force", help="Replace an earlier run.")] = False,
    figures: Figures = True,
    report: Annotated[bool, Option("--open", help="Write DIR/report.html, and open it in a browser.")] = False,
    seed: TrainingSeed = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Learn the density of a table, of images or of audio.

    Trains, validates on a tenth of the rows, keeps the best weights and plots figures. Interrupt it with Ctrl-C: the
    best so far is kept, and --resume goes on.
    """


@_command(trains=True)
def posterior(
    source: Annotated[
        str,
        Argument(help="A table of simulations, a row each: .csv, .parquet ... as 'diffeo fit' takes.", metavar="DATA"),
    ],
    out: NewRun,
    parameters: Annotated[list[str] | None, Option(help="The columns of the parameters.", metavar="COLS")] = None,
    observed: Annotated[
        list[str] | None,
        Option(help="The columns of the observation.  [default: all other numbers]", metavar="COLS"),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        Option(help="Where the prior of a parameter ends, a=-1:1, or a=0: for none.", metavar="COL=LOW:HIGH"),
    ] = None,
    method: Annotated[str | None, Option(help="npe, or fmpe (flow matching).  [default: npe]")] = None,
    drop: Annotated[list[str] | None, Option(help="Columns to leave out.", metavar="COLS")] = None,
    missing: Missing = False,
    na: Na = None,
    sep: Sep = None,
    decimal: Decimal = None,
    test: Annotated[
        float | None, Option(help="Keep this fraction of the rows for 'diffeo check' alone.", metavar="FRACTION")
    ] = None,
    folds: Annotated[
        int | None,
        Option(help="Hold out so many parts in turn, each of one model.  [default: 5; of large tables 1]"),
    ] = None,
    epochs: Annotated[int | None, Option(help="Passes over the data at most.")] = None,
    minutes: Annotated[float | None, Option(help="Minutes of training at most.")] = None,
    batch_size: Annotated[int | None, Option(help="Rows per step.")] = None,
    lr: Annotated[float | None, Option(help="The highest learning rate.")] = None,
    hidden: Annotated[str | None, Option(help="Widths of the hidden layers.", metavar="N,N,...")] = None,
    transforms: Annotated[int | None, Option(help="How many transforms.")] = None,
    arguments: Annotated[
        list[str] | None,
        Option("--set", help="Another argument of the model, e.g. --set bins=16.", metavar="NAME=VALUE"),
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue a run, with its own settings.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an earlier run.")] = False,
    figures: Figures = True,
    seed: TrainingSeed = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Learn what parameters are likely given an observation, from simulations.

    A row of the table holds parameters, drawn from their prior, and what a simulator made of them. The run is
    calibrated on simulations that it held out, if there are enough, and is used as any: 'diffeo sample RUN --given
    x=1.5' draws parameters given an observation, 'diffeo check RUN DATA' says whether to trust them.
    """


@_command(counts="scored")
def score(
    run: Run,
    source: Data,
    out: Out = None,
    keep: Annotated[
        list[str] | None, Option(help="Columns to pass through, an identifier say.", metavar="COLS")
    ] = None,
    drop: Annotated[
        list[str] | None,
        Option(help="Columns to ignore; a mixed density then scores the others alone.", metavar="COLS"),
    ] = None,
    conditions: Annotated[
        list[str] | None,
        Option("--given", help="Columns that the likelihood is conditional on, of a mixed density.", metavar="COLS"),
    ] = None,
    missing: Missing = False,
    na: Na = None,
    sep: Sep = None,
    decimal: Decimal = None,
    samples: Annotated[
        int | None, Option(help="Draws for each image of the bounds that a VAE has.  [default: 100]")
    ] = None,
    engine: Annotated[
        str | None,
        Option(help="local, ray, spark or dask: who scores tables; --out is then a folder.", metavar="NAME"),
    ] = None,
    workers: Annotated[int | None, Option(help="Of an engine: how many parts at once.  [default: its cores]")] = None,
    resume: Annotated[bool, Option("--resume", help="Of an engine: keep the files that are finished.")] = False,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write the log-likelihood of every row, image or recording.

    The result has the columns 'row', the number of the row in the table from 1, and 'log_likelihood', in nats and in
    the units of the table; images and recordings have their number or file instead. A value off its column's grid (a
    level never seen, a fraction in a column of whole numbers) counts as the nearest one, and as rare. Of several
    .parquet files --out is a folder for as many results of the same names, or one table. A VAE has bounds of it
    instead: 'elbo', and 'bound', the importance-weighted one of --samples draws, with its standard error
    'bound_stderr'.
    """


@_command(counts="scored")
def anomalies(
    run: Run,
    source: Data,
    out: Out = None,
    alpha: Annotated[float, Option(help="The p-value up to which a row is flagged.")] = 0.01,
    plot: Annotated[
        Path | None, Option(help="A picture of the scores and of the worst rows.", metavar="FILE.png")
    ] = None,
    keep: Annotated[
        list[str] | None, Option(help="Columns to pass through, an identifier say.", metavar="COLS")
    ] = None,
    missing: Missing = False,
    na: Na = None,
    sep: Sep = None,
    decimal: Decimal = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Find the rows of a table that are unlike those of the training.

    The result has, the worst row first, 'log_likelihood', 'score' (the same, lowered where a row is stranger when it is
    looked at less sharply), 'p_value' (how rare such a score is among rows that were held out), 'anomaly' (whether that
    is at most --alpha: of ordinary rows a share of --alpha is), and for the worst rows what each column adds, in nats
    above what is usual ('share_' and its name), and the 'column' that adds most.
    """


@_command(counts="drew")
def sample(
    run: Run,
    n: Annotated[int | None, Option("-n", "--number", help="How many rows (for each context of --given-file).")] = None,
    out: Out = None,
    given: Annotated[
        list[str] | None,
        Option(help="A column's value: of a context, or of a mixed density any column.", metavar="COL=VALUE"),
    ] = None,
    given_from: Annotated[
        str | None,
        Option("--given-file", help="A table of contexts instead; recordings for their mel.", metavar="DATA"),
    ] = None,
    guidance: Annotated[
        float | None, Option(help="Of flow matching: above 1, more typical of the context.", metavar="WEIGHT")
    ] = None,
    length: Annotated[float | None, Option("--seconds", help="How long sounds shall be.", metavar="SECONDS")] = None,
    means: Annotated[bool, Option("--means", help="Of a VAE: the mean of each image, not a draw.")] = False,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw new rows, images or sounds.

    Rows have the columns, types and order of the training table; no value leaves the range seen there. Images are
    written as a grid (--out x.png), an array (x.npz) or a folder of pngs, sounds as a folder of wavs.
    """


@_command(counts="predicted")
def predict(
    run: Run,
    source: Data,
    out: Out = None,
    quantiles: Annotated[str, Option(help="Their levels, between 0 and 1.", metavar="Q,Q,...")] = ".05,.5,.95",
    crps: Annotated[
        bool, Option("--crps", help="Write the score of each row, too, where DATA has what happened.")
    ] = False,
    keep: Annotated[
        list[str] | None, Option(help="Columns to pass through, an identifier say.", metavar="COLS")
    ] = None,
    missing: Missing = False,
    na: Na = None,
    sep: Sep = None,
    decimal: Decimal = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write quantiles of columns given the others.

    Of a run trained with --context: for each row of DATA, which has the columns of the context, quantiles of the
    others, 'y_q0.05' say. Where DATA has these columns, too, the coverage of the interval between the outermost
    quantiles is reported, and whether the run's distribution functions are calibrated (PIT).
    """


@_command(counts="filled")
def impute(
    run: Run,
    source: Data,
    out: Out = None,
    draws: Annotated[int, Option(help="How often each row is completed.", min=1)] = 1,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fill the gaps of a table.

    Each missing cell is drawn given the others of its row, by a mixed density. With --draws 5 every row is written five
    times, behind the columns 'row' and 'draw'.
    """


@_command()
def inpaint(
    run: Run,
    image: Annotated[str, Argument(help="An image, or many: what 'diffeo fit' takes.", metavar="IMAGE")],
    mask: Annotated[str, Argument(help="A picture of the same size; what is not black is hidden.", metavar="MASK")],
    out: Annotated[Path, Option("--out", "-o", help="A grid (.png), an array (.npz), or a folder of pngs.")],
    steps: Annotated[int, Option(help="Steps of the ascent.", min=1)] = 400,
    label: Annotated[str | None, Option(help="The class, for a conditional model.")] = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Complete the hidden pixels of images by climbing the density."""


@_command(trains=True)
def distill(
    run: Run,
    out: NewRun,
    student: Annotated[
        str | None,
        Option(
            help="few-steps or reflow, of a continuous flow; nsf-inverse, iaf, realnvp or nsf-coupling, of any table; "
            "parallel_wavenet, of audio.  [default: the first that RUN can have]",
        ),
    ] = None,
    source: Annotated[
        str | None,
        Option(
            "--data",
            help="The teacher's table or recordings, for contexts and to judge by.  [default: those that RUN names]",
        ),
    ] = None,
    missing: Missing = False,
    epochs: Annotated[
        int | None,
        Option(
            help="Epochs of training: of 100 steps each; of images, 32; of audio, passes over it.  "
            "[default: 100; images: 150; audio: 60]",
        ),
    ] = None,
    minutes: Annotated[float | None, Option(help="Minutes of training instead.")] = None,
    forward_share: Annotated[
        float | None, Option(help="Weight of the forward KL in the last stage, of audio.  [default: 0.1]")
    ] = None,
    power: Annotated[float | None, Option(help="Weight of the power loss, of audio.  [default: 2]")] = None,
    contrast: Annotated[float | None, Option(help="Weight of the contrastive term, of audio.  [default: 0]")] = None,
    arguments: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="An argument of the student, e.g. --set transforms=8; of few-steps: --set steps=4.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue a run, with its own settings.")] = False,
    force: Annotated[
        bool, Option("--force", help="Replace an earlier run; distil a model that is fast already.")
    ] = False,
    figures: Figures = True,
    seed: TrainingSeed = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Make a model that is slow to sample into a fast one.

    Trains a student that samples in a single parallel pass, and says what was lost: both divergences, modes (of audio,
    how it sounds), the likelihood of real data, and how much faster it is. The student of a continuous flow, of a table
    or of images, samples in a few steps (and has no likelihood): the report has its distance from the teacher.
    """


@app.command()
def info(
    run: Annotated[
        Path | None, Argument(help="A run directory, as 'diffeo fit' makes.", metavar="RUN", show_default=False)
    ] = None,
    machine: Annotated[
        bool, Option("--machine", help="Say what computes here instead: processor, kernels and their speed.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what a run is.

    Its model, columns and metrics, and where it comes from. With --machine: the processor, the compiler, which kernels
    are used or why not, and how fast they are beside PyTorch.
    """
    if (run is None) != machine:
        raise UserError("expected either RUN or --machine; see diffeo info --help")

    from diffeo import commands

    if run is None:
        _print("machine", commands.machine(), as_json)
    else:
        _print("info", commands.info(run), as_json)


@_command()
def export(
    run: Run,
    out: Annotated[Path, Option("--out", "-o", help="The file to write.", metavar="FILE")],
    source: Annotated[
        str | None,
        Argument(help="Data to compare by, of which those held out.  [default: the run's own]", metavar="[DATA]"),
    ] = None,
    to: Annotated[
        str | None, Option(help="onnx, or pt2 (torch.export).  [default: as FILE says]", metavar="FORMAT")
    ] = None,
    what: Annotated[str, Option(help="log-prob, sample, encode or decode.")] = "log-prob",
    force: Force = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a run as a file that runs without diffeo.

    The file takes the data's own numbers and holds all that is between them and the result; noise is an input. What
    its inputs and columns are, it says itself. It is loaded and compared with diffeo, on held-out rows, on rows further
    out, and in batches of 1, 7 and 1000, and is only written if it agrees.
    """


@_command()
def check(
    run: Run,
    source: Data,
    rows: Annotated[int, Option(help="Rows to use at most, drawn at random.")] = 10_000,
    missing: Missing = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say whether a run can be trusted.

    Examines inverse, log-determinant, latents, samples and likelihood on a table, on images or on audio, and gives a
    verdict. Given the data of training, the rows used are those kept for the test (fit --test), or else those for
    validation; where these are too few, those trained on, of which the verdict says so.
    """


@_command()
def report(
    run: Run,
    source: Annotated[
        str | None,
        Argument(help="Data to check the run by, and to show: what 'diffeo fit' takes.", metavar="[DATA]"),
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "--out",
            "-o",
            help="The page, beside it the card in .md.  [default: RUN/report.html]",
            metavar="FILE.html",
        ),
    ] = None,
    missing: Missing = False,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write a run as one page that can be sent, and as a model card.

    The page is one file that loads nothing: what the model is, was trained on, how good it is and what it cannot know,
    with figures and sounds. Given data, the run is checked on them. The card is the same in Markdown, with the front
    matter that model hubs read.
    """


COMMANDS = (fit, posterior, score, anomalies, sample, predict, impute, inpaint, distill, export, info, check, report)
