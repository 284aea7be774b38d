"""The commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffeo.cli import parse
from diffeo.errors import UserError

app = typer.Typer(
    help="Normalizing flows: learn the density of a table, of images or of audio, score them, draw new ones.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would double its time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA_HELP = (
    "A table (.csv .csv.gz .tsv .parquet .feather .npy .npz), images (a folder of .png or .jpg, .npy or .npz of rank 3 "
    "or 4), audio (a folder of .wav, .flac or .ogg, or a pattern of paths), or a built-in set: moons, rings, "
    "checkerboard, 8gaussians, pinwheel, spirals, wine, breast_cancer, flower; images: digits, mnist; audio: fsdd."
)
Run = Annotated[Path, typer.Argument(help="A run directory, as 'diffeo fit' makes.", metavar="RUN")]
Data = Annotated[str, typer.Argument(help=DATA_HELP, metavar="DATA")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides all that is random.", min=0)]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Where to; the extension decides the format. Default: csv on stdout."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
DropMissing = Annotated[
    bool, typer.Option("--drop-missing", help="Leave out rows with empty cells, NaN or infinity, else refused.")
]


def _version(asked: bool) -> None:
    if asked:
        from diffeo import __version__

        print(f"diffeo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to make.", metavar="RUN")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="nice, realnvp, glow, maf, iaf, nsf, wavenet or flow-matching; chosen for the data by default.",
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            "--context",
            help="Columns that the density is conditional on; of images: label; of audio: mel, label.",
            metavar="COLS",
        ),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Columns to leave out.", metavar="COLS")] = None,
    drop_missing: DropMissing = False,
    test: Annotated[
        float | None,
        typer.Option("--test", help="Keep this fraction of the rows for 'diffeo check' alone.", metavar="FRACTION"),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="Bring pictures to this side, or height,width.", metavar="N[,N]")
    ] = None,
    rate: Annotated[
        int | None, typer.Option("--rate", help="Bring audio to so many samples per second.", metavar="HZ")
    ] = None,
    crop: Annotated[
        float | None, typer.Option("--crop", help="Seconds of audio in an example.  [default: 1]", metavar="SECONDS")
    ] = None,
    mels: Annotated[
        int | None, typer.Option("--mels", help="Log-mel channels.  [default: 40; from 12 kHz on: 80]")
    ] = None,
    label_pattern: Annotated[
        str | None,
        typer.Option("--label-pattern", help="Finds a label in the name of a recording.", metavar="REGEX"),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data at most.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Minutes of training at most.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Rows per step.  [default: 512; images: 64 or 128; audio: 8]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", help="Divide a step into so many chunks, to save memory.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="The highest learning rate.  [default: 0.01, or 0.002]")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option("--hidden", help="Widths of the hidden layers.", metavar="N,N,...")
    ] = None,
    transforms: Annotated[int | None, typer.Option("--transforms", help="How many transforms.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another argument of the model, e.g. --set bins=16.", metavar="NAME=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run, with its own settings; longer with a larger budget.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run.")] = False,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Plot figures into RUN/figures.")] = True,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides all that is random.  [default: 0]")] = None,
    device: Device = None,
    as_json: Json = False,
) -> int:
    """Learn the density of a table, of images or of audio.

    Trains, validates on a tenth of the rows, keeps the best weights and plots figures. Interrupt it with Ctrl-C: the
    best so far is kept, and --resume goes on.
    """
    options = {"hidden": parse.whole_numbers(hidden, "--hidden"), "transforms": transforms}
    arguments = {name: value for name, value in options.items() if value is not None}
    arguments.update(parse.assignments(set_, "--set"))

    from diffeo import commands
    from diffeo.cli import show

    summary = commands.fit(
        data, out, model=model, arguments=arguments, context=parse.columns(context), drop=parse.columns(drop),
        missing="drop" if drop_missing else "error", test=test, size=parse.whole_numbers(size, "--size") or (),
        rate=rate, crop=crop, mels=mels, label_pattern=label_pattern, epochs=epochs,
        minutes=minutes, batch_size=batch_size, accumulate=accumulate, lr=lr, seed=seed, device=device, resume=resume,
        force=force, figures=figures, progress=True, say=_note,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) > 0:
        return 0  # under torchrun the first process speaks for all
    _print(summary, as_json, show.fit)
    if summary["stopped"] == "interrupted":
        again = shlex.join(["diffeo", "fit", data, "--out", str(out), "--resume"])
        print(f"diffeo: interrupted; the best so far is in {out}; go on with: {again}", file=sys.stderr)
        return 130
    return 0


@app.command()
def score(
    run: Run,
    data: Data,
    out: Out = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="Columns of numbers to pass through, an identifier say.", metavar="COLS"),
    ] = None,
    drop_missing: DropMissing = False,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write the log-likelihood of every row, image or recording.

    The result has a column 'log_likelihood', in nats and in the units of the table, rows in order. Rows with a value
    that the model rules out (a level never seen, a fraction in a column of whole numbers) get -inf.
    """
    _check_out(out, as_json)
    kept = parse.columns(keep)

    from diffeo import commands
    from diffeo.cli import show
    from diffeo.cli.progress import RowsBar

    with RowsBar("scored") as bar:
        summary = commands.score(
            run, data, out, keep=kept, missing="drop" if drop_missing else "error", seed=seed, device=device,
            force=force, progress=bar,
        )  # fmt: skip
    _print(summary, as_json, show.score, results_on_stdout=_is_stdout(out))


@app.command()
def sample(
    run: Run,
    number: Annotated[
        int | None, typer.Option("-n", "--number", help="How many rows (for each context of --given-file).")
    ] = None,
    out: Out = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--given", help="A context column's value, for a conditional model.", metavar="COL=VALUE"),
    ] = None,
    given_file: Annotated[
        str | None,
        typer.Option("--given-file", help="A table of contexts instead; recordings for their mel.", metavar="DATA"),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="Of flow matching: above 1, more typical of the context.", metavar="WEIGHT"),
    ] = None,
    length: Annotated[
        float | None, typer.Option("--seconds", help="How long sounds shall be.", metavar="SECONDS")
    ] = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Draw new rows, images or sounds.

    Rows have the columns, types and order of the training table; no value leaves the range seen there. Images are
    written as a grid (--out x.png), an array (x.npz) or a folder of pngs, sounds as a folder of wavs.
    """
    _check_out(out, as_json)

    from diffeo import commands
    from diffeo.cli import show
    from diffeo.cli.progress import RowsBar

    with RowsBar("drew") as bar:
        summary = commands.sample(
            run, number, out, given=parse.context_values(given), given_from=given_file,
            guidance=guidance, length=length, seed=seed, device=device, force=force, progress=bar,
        )  # fmt: skip
    _print(summary, as_json, show.sample, results_on_stdout=_is_stdout(out))


@app.command()
def inpaint(
    run: Run,
    image: Annotated[str, typer.Argument(help="An image, or many: what 'diffeo fit' takes.", metavar="IMAGE")],
    mask: Annotated[
        str, typer.Argument(help="A picture of the same size; what is not black is hidden.", metavar="MASK")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A grid (.png), an array (.npz), or a folder of pngs.")],
    steps: Annotated[int, typer.Option("--steps", help="Steps of the ascent.", min=1)] = 400,
    label: Annotated[str | None, typer.Option("--label", help="The class, for a conditional model.")] = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Complete the hidden pixels of images by climbing the density."""
    from diffeo.cli import show
    from diffeo.commands import inpaint as complete

    summary = complete(run, image, mask, out, steps=steps, label=label, seed=seed, device=device, force=force)
    _print(summary, as_json, show.inpaint)


@app.command()
def distill(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run directory to make.", metavar="DIR")],
    student: Annotated[
        str | None,
        typer.Option(
            "--student",
            help="few-steps or reflow, of a continuous flow; nsf-inverse, iaf, realnvp or nsf-coupling, of any table; "
            "parallel_wavenet, of audio.  [default: the first that RUN can have]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="The teacher's table or recordings, for contexts and to judge by.  [default: those that RUN names]",
        ),
    ] = None,
    drop_missing: DropMissing = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            help="Epochs of training: of 100 steps each; of images, 32; of audio, passes over it.  "
            "[default: 100; images: 150; audio: 60]",
        ),
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Minutes of training instead.")] = None,
    forward_share: Annotated[
        float | None,
        typer.Option("--forward-share", help="Weight of the forward KL in the last stage, of audio.  [default: 0.1]"),
    ] = None,
    power: Annotated[
        float | None, typer.Option("--power", help="Weight of the power loss, of audio.  [default: 2]")
    ] = None,
    contrast: Annotated[
        float | None, typer.Option("--contrast", help="Weight of the contrastive term, of audio.  [default: 0]")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An argument of the student, e.g. --set transforms=8; of few-steps: --set steps=4.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run, with its own settings.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run; distil a model that is fast already.")
    ] = False,
    figures: Annotated[bool, typer.Option("--figures/--no-figures", help="Plot figures into DIR/figures.")] = True,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides all that is random.  [default: 0]")] = None,
    device: Device = None,
    as_json: Json = False,
) -> int:
    """Make a model that is slow to sample into a fast one.

    Trains a student that samples in a single parallel pass, and says what was lost: both divergences, modes (of audio,
    how it sounds), the likelihood of real data, and how much faster it is. The student of a continuous flow, of a table
    or of images, samples in a few steps (and has no likelihood): the report has its distance from the teacher.
    """
    arguments = parse.assignments(set_, "--set")

    from diffeo import commands
    from diffeo.cli import show

    summary = commands.distill(
        run, out, data, student=student, arguments=arguments, epochs=epochs, minutes=minutes,
        forward_share=forward_share, power=power, contrast=contrast,
        missing="drop" if drop_missing else "error", seed=seed, device=device, resume=resume,
        force=force, figures=figures, progress=True, say=_note,
    )  # fmt: skip
    if int(os.environ.get("RANK", "0")) > 0:
        return 0  # under torchrun the first process speaks for all
    _print(summary, as_json, show.distill)
    if summary["stopped"] == "interrupted":
        again = shlex.join(["diffeo", "distill", str(run), "--out", str(out), "--resume"])
        print(f"diffeo: interrupted; the best so far is in {out}; go on with: {again}", file=sys.stderr)
        return 130
    return 0


@app.command()
def info(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory, as 'diffeo fit' makes.", metavar="RUN", show_default=False)
    ] = None,
    of_machine: Annotated[
        bool, typer.Option("--machine", help="Say what computes here instead: processor, kernels and their speed.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say what a run is.

    Its model, columns and metrics, and where it comes from. With --machine: the processor, the compiler, which kernels
    are used or why not, and how fast they are beside PyTorch.
    """
    if (run is None) != of_machine:
        raise UserError("expected either RUN or --machine; see diffeo info --help")

    from diffeo.cli import show
    from diffeo.commands import info as run_info
    from diffeo.commands import machine

    if run is None:
        _print(machine(), as_json, show.machine)
    else:
        _print(run_info(run), as_json, show.info)


@app.command()
def check(
    run: Run,
    data: Data,
    rows: Annotated[int, typer.Option("--rows", help="Rows to use at most, drawn at random.")] = 10_000,
    drop_missing: DropMissing = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say whether a run can be trusted.

    Examines inverse, log-determinant, latents, samples and likelihood on a table, on images or on audio, and gives a
    verdict. Given the data of training, the rows used are those kept for the test (fit --test), or else those for
    validation; where these are too few, those trained on, of which the verdict says so.
    """
    from diffeo.cli import show
    from diffeo.commands import check as examine

    report = examine(run, data, rows=rows, missing="drop" if drop_missing else "error", seed=seed, device=device)
    _print(report, as_json, show.check)


def _print(
    summary: Mapping[str, Any], as_json: bool, show: Callable[[Any], str], results_on_stdout: bool = False
) -> None:
    from diffeo.training.run import plain

    if as_json:
        print(json.dumps(plain(summary), indent=2))
    else:
        print(show(summary), file=sys.stderr if results_on_stdout else sys.stdout)


def _is_stdout(out: Path | None) -> bool:
    return out is None or str(out) == "-"


def _check_out(out: Path | None, as_json: bool) -> None:
    if as_json and _is_stdout(out):
        raise UserError("rows and JSON cannot both go to stdout; give --out FILE with --json")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


COMMANDS = (fit, score, sample, inpaint, distill, info, check)
