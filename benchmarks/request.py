"""What is asked of a comparison: a model, texts and rows by name; run, judged, and kept in a folder."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from judging import Judge
from peer import BENCHMARKS
from quantization_report import EVALUATION, Evaluation
from rows import Bench, Row

from calibration.dataset import TokenSet, load_tokens
from compressor.errors import InputError, LlmcError
from compressor.files import write_json, write_whole
from compressor.ledger import TextRecord
from compressor.tokenizer import load_tokenizer


def parser(about: str | None, name: str) -> argparse.ArgumentParser:
    """The command line that comparisons share; results are kept as `name`."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, help="Hugging Face folder")
    made.add_argument("--calibration", help="text, as `llmc compress` takes it")
    made.add_argument("--evaluation", help="held-out text")
    made.add_argument("--rows", nargs="+", metavar="NAME", help="names of rows; the others stay as they are")
    made.add_argument("--samples", type=int, help="calibration windows, 128 where a model is given")
    made.add_argument("--length", type=int, default=512, help="tokens of a calibration window")
    made.add_argument("--windows", type=int, default=24, help="evaluation windows")
    made.add_argument("--window-length", type=int, default=512, help="tokens of an evaluation window")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of every row")
    made.add_argument("--again", action="store_true", help="run the rows although they are finished")
    made.add_argument("--rounds", type=int, default=0, help="run the rows so many times, in turns")
    made.add_argument("--out", type=Path, default=Path("out") / name)
    made.add_argument("--results", type=Path, default=BENCHMARKS / "results" / f"{name}.md")
    return made


def is_whole(given: argparse.Namespace) -> bool:
    """Whether a model and both texts are given."""
    return bool(given.model and given.calibration and given.evaluation)


def chosen(rows: Sequence[Row], names: list[str] | None) -> list[Row] | None:
    """The rows of these names, None where none are given.

    Raises:
        InputError: there is no such row.
    """
    known = {row.name: row for row in rows}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"There is no row {unknown[0]!r}.", "Rows: " + ", ".join(known) + ".")
    return None if names is None else [known[name] for name in names]


def run(arguments: argparse.Namespace, wanted: Sequence[Row], rows: Sequence[Row]) -> dict[str, LlmcError]:
    """Run rows on the model and judge all that there are; why some were not run, by name."""
    tokenizer = load_tokenizer(arguments.model)
    calibration = load_tokens(
        arguments.calibration, tokenizer, samples=arguments.samples or 128, length=arguments.length, seed=0
    )
    evaluation = load_tokens(
        arguments.evaluation, tokenizer, samples=arguments.windows, length=arguments.window_length, seed=None
    )
    bench = Bench.open(arguments.out, arguments.model, calibration.tokens, arguments.threads)
    problems = (
        bench.time_in_turns(wanted, arguments.rounds) if arguments.rounds else bench.run_all(wanted, arguments.again)
    )
    judge = Judge.of(arguments.model, evaluation.tokens, arguments.out / "reference")
    for row in rows:
        judge.judge(bench, row)
    about = Evaluation(arguments.model.name, judge.key, _record(calibration), _record(evaluation))
    write_json(arguments.out / EVALUATION, asdict(about))
    return problems


def finish(arguments: argparse.Namespace, compare: Callable[[], tuple[str, bool]]) -> int:
    """Print and keep what a comparison says; its exit code, 1 where a bar fails or a row broke."""
    try:
        text, failed = compare()
    except LlmcError as error:
        print(f"{error} {error.hint or ''}".strip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; finished rows are kept.", file=sys.stderr)
        return 4
    write_whole(arguments.results, text)
    print(text)
    return int(failed)


def start(main: Callable[[], int]) -> None:
    """Run a comparison so that a terminated one ends its row's processes and leaves nothing of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated; finished rows are kept."))
    sys.exit(main())


def _record(text: TokenSet) -> TextRecord:
    windows, length = text.tokens.shape
    return TextRecord(Path(text.source).name, windows, length, text.digest)
