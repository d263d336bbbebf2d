"""The benchmark of batches times answers and tells how many were others; a step is asked for texts alone."""

from __future__ import annotations

import sys

import batches

SAMPLES = '{"q": "Who?", "a": "yes"}\n{"q": "And who else was there?", "a": "no"}\n'
KINDS = {
    "names": "kind: generation\nmax_tokens: 3\n",
    "sides": 'kind: classification\nchoices: ["yes", "no"]\n',
}


def test_a_step_is_asked_for_texts_alone(tiny_model, tmp_path, monkeypatch, capsys):
    (tmp_path / "samples.jsonl").write_text(SAMPLES)
    words = [tiny_model("llama"), "--batch-size", 2, "--turns", 2]
    for name, kind in KINDS.items():
        (tmp_path / f"{name}.yaml").write_text(
            f'task: {name}\n{kind}data: samples.jsonl\nprompt: "{{{{ q }}}}"\nanswer: a\n'
        )
        words += ["--task", tmp_path / f"{name}.yaml"]
    monkeypatch.setattr(sys, "argv", ["batches.py", *map(str, words)])
    batches.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found = dict(zip(header, row, strict=True))
    assert (found["task"], found["samples"], found["batch"], found["other answers"]) == ("names", "2", "2", "0")
    assert float(found["CPU s one at a time"]) > 0
