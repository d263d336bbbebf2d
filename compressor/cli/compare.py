"""`llmc compare`: which run is the best; and is it the quantization or the runtime?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.engines import engine_option
from compressor.cli.paths import UserPath
from compressor.cli.say import say
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.comparison import ArtifactComparison, RuntimeRow
    from compressor.ledger import Ledger
    from compressor.pass_ import Progress

SAMPLES, LENGTH = 4, 128  # of what runtimes are asked with
PAGE = Path("compare.html")
WIDE = 120  # columns of a terminal that has room for the whole table
MARKS = {"agrees": ("✓", "green"), "differs": ("✗", "red"), "broke": ("✗", "red"), "not run": ("·", "yellow")}


@click.command("compare")
@click.argument("artifacts", nargs=-1, required=True, type=UserPath(), metavar="RUN_OR_ARTIFACT...")
@click.option("-o", "--output", type=UserPath(), help="HTML file to write.  [default: compare.html]")
@click.option("--runtimes", is_flag=True, help="Compare runtimes instead, on the same weights.")
@click.option("--text", metavar="TEXT", help="Text to run; the same kinds as --eval.  [default: the run's --eval]")
@click.option("--samples", type=click.IntRange(1), help=f"Texts.  [default: {SAMPLES}]")
@click.option("--length", type=click.IntRange(8), help=f"Tokens of a text.  [default: {LENGTH}]")
@click.option("--original", metavar="MODEL", help="Original model of the artifacts.  [default: the run's model]")
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(
    artifacts: tuple[Path, ...],
    output: Path | None,
    runtimes: bool,
    as_json: bool,
    **asking: Any,
) -> int:
    """Compare finished runs by accuracy, size and speed, in the terminal and as one HTML file.

    With --runtimes, find out whether the quantization or the runtime is at fault. It compares the weights of each
    RUN_OR_ARTIFACT with the original, and every installed runtime with those weights.

    \b
    llmc compare out/gptq out/awq out/mixed -o compare.html
    llmc compare --runtimes out/gptq

    \b
    Exit code of --runtimes: 0: every runtime that was run agrees; 1: one differs or broke; 2: there is nothing to
    compare.
    """
    if not runtimes:
        _refuse(asking)
        return _compare_runs(artifacts, output, as_json)
    if output is not None:
        raise InputError("--output is for a comparison of runs.", "Leave it out, or --runtimes.")
    return _compare_runtimes(artifacts, as_json, **asking)


def _refuse(asking: dict[str, Any]) -> None:
    given = [name for name, value in asking.items() if value is not None]
    if given:
        raise InputError(f"--{given[0]} is for a comparison of runtimes.", "Give --runtimes too.")


def _compare_runs(paths: tuple[Path, ...], output: Path | None, as_json: bool) -> int:
    from compressor.cli import emit_json
    from compressor.files import write_whole
    from compressor.report import comparison
    from compressor.run_folder import runs_in

    runs = comparison.open_runs([run for path in paths for run in runs_in(path) or [path]])
    if len(runs) < 2:
        raise InputError("There is one run, and nothing to compare it with.", "Give several; `llmc report` shows one.")
    page = output or (None if as_json else PAGE)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(page, comparison.render(runs))
    if as_json:
        emit_json(comparison.plain(runs))
        return 0
    from rich.console import Console

    from compressor.report.terminal import show_table

    console = Console()
    show_table(comparison.overview(runs, narrow=console.width < WIDE), console)
    for remark in [*comparison.remarks(runs), comparison.STARS]:
        say(f"• {remark}")
    say()
    say(f"Written: {page}")
    return 0


def _compare_runtimes(
    artifacts: tuple[Path, ...],
    as_json: bool,
    text: str | None,
    samples: int | None,
    length: int | None,
    original: str | None,
) -> int:
    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress

    size = (samples or SAMPLES, length or LENGTH)
    with ConsoleProgress(after=2.0) as progress:
        found = [_compare(path, text, size, original, progress) for path in artifacts]
    if as_json:
        emit_json([one.plain() for one in found])
    else:
        for one in found:
            _show(one)
    return int(any(one.at_fault for one in found))


def _compare(
    path: Path, text: str | None, size: tuple[int, int], original: str | None, progress: Progress
) -> ArtifactComparison:
    import tempfile

    from compressor.audit import find_artifact
    from compressor.comparison import Comparer

    root = find_artifact(path)
    ledger = _ledger(root)
    with tempfile.TemporaryDirectory(prefix="llmc-") as folder:
        scratch = Path(folder)
        checkpoint = _original(root, original or (ledger.model if ledger else None), scratch / "import", progress)
        if original is not None and isinstance(checkpoint, str):
            raise InputError(f"{checkpoint}.")
        tokens = _tokens(root, text or _judged_by(ledger), size, checkpoint)
        return Comparer(tokens, checkpoint, scratch / "states", progress).compare(root)


def _ledger(root: Path) -> Ledger | None:
    """The ledger of the run that an artifact is in the folder of."""
    from compressor.ledger import load_ledger
    from compressor.run_folder import LEDGER_FILE

    return load_ledger(root.parent) if (root.parent / LEDGER_FILE).is_file() else None


def _judged_by(ledger: Ledger | None) -> str:
    texts = ledger.recipe.get("measure", {}).get("texts") if ledger else None
    if not texts:
        raise InputError("There is no text to ask with: the run has none.", "Give --text FILE.")
    return str(texts)


def _original(root: Path, model: str | None, folder: Path, progress: Progress) -> Checkpoint | str:
    """The checkpoint that an artifact was made from, or why it is not known."""
    from compressor.checkpoint import Checkpoint
    from compressor.errors import LlmcError
    from compressor.source import open_model

    imported = root.parent / "steps" / "00-import"
    if model is None:
        return "the original is not known, for this is no run's folder; --original names it"
    try:
        if imported.is_dir():
            return Checkpoint.open(imported)
        if not Path(model).expanduser().exists():  # a hub id is not fetched again
            return f"the original, {model}, is not here; --original names it"
        return open_model(model, folder, progress=progress).checkpoint
    except LlmcError as error:
        return str(error).rstrip(".")


def _tokens(root: Path, text: str, size: tuple[int, int], original: Checkpoint | str) -> Any:
    from calibration.dataset import load_tokens

    samples, length = size
    tokenizer = _tokenizer(root, original)
    return load_tokens(text, tokenizer, samples=samples, length=length, seed=None, allow_network=False).tokens


def _tokenizer(root: Path, original: Checkpoint | str) -> Any:
    """The artifact's own tokenizer, or the original's where it lies inside of a file of weights."""
    from compressor.readback import artifact_tokenizer
    from compressor.tokenizer import tokenizer_of

    if isinstance(original, str) or not any(root.glob("*.gguf")):
        return artifact_tokenizer(root)
    return tokenizer_of(original)


def _show(found: ArtifactComparison) -> None:
    say(f"{found.artifact}: {found.target}, {', '.join(found.schemes) or 'not quantized'}", bold=True)
    if found.loss is None:
        _line("·", "yellow", "quantizing", f"not compared: {found.no_loss}")
    else:
        from compressor.report.numbers import estimate

        change = estimate(found.loss.perplexity_increase, percent=True)
        kl, top1 = estimate(found.loss.kl), estimate(found.loss.top1, percent=True)
        _line("=", "cyan", "quantizing", f"perplexity {change} up, KL {kl}, top-1 {top1} against the original")
    for row in found.runtimes:
        _line(*MARKS[row.verdict], row.runtime, _sentence(row))
    if found.at_fault:
        say("A runtime is at fault, not the quantization.", fg="red", bold=True)


def _sentence(row: RuntimeRow) -> str:
    if row.difference is None:
        return f"{row.verdict}: {row.reason}"
    from compressor.report.numbers import estimate

    found = row.difference
    apart = f"mean {found.mean:.2g}, largest {found.largest:.2g}"
    kl, top1 = f"{found.kl.value:.2g}", estimate(found.top1, percent=True)
    said = f"log-probabilities apart by {apart}; KL {kl}, top-1 {top1} against its weights"
    control = (
        row.control and f"rounding alone moves these weights by {row.control.mean:.2g} and {row.control.largest:.2g}"
    )
    return f"{said}; {row.verdict}: {row.reason or control or row.tolerance.reason}"


def _line(mark: str, color: str, name: str, text: str) -> None:
    say(mark, fg=color, nl=False)
    say(f" {name}: {text}")
