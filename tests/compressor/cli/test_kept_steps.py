"""`--steps`: what stays of the folders that passes leave, and what cannot be done without them."""

import json

import pytest
import yaml

PASSES = ("--pass", "rotate", "--pass", "rtn:group_size=32")


@pytest.fixture
def run(llmc, tiny_model, tmp_path):
    """`run(kept, *words)`: two passes, and the run's folder."""
    root, out = tiny_model("llama"), tmp_path / "out"

    def start(kept, *words):
        asked = ("compress", root, "-t", "hf", *PASSES, "--measure", "none", "--steps", kept, "-o", out, *words)
        return out, llmc(*asked)

    return start


@pytest.mark.parametrize(
    ("kept", "names"), [("keep", ["01-rotate", "02-rtn"]), ("last", ["02-rtn"]), ("none", [])], ids=str
)
def test_what_stays(run, kept, names):
    out, (code, _, err) = run(kept)
    assert code == 0, err
    assert sorted(path.name for path in (out / "steps").iterdir()) == names
    assert yaml.safe_load((out / "recipe.yaml").read_text())["steps"] == kept
    assert (out / "artifact" / "config.json").is_file()


@pytest.mark.parametrize(("kept", "gone"), [("last", "01-rotate"), ("none", "01-rotate")])
def test_a_whole_run_without_its_steps_is_not_gone_on_with(run, kept, gone):
    out, _ = run(kept)
    before = (out / "ledger.json").read_bytes()
    _, (code, _, err) = run(kept, "--resume")
    assert code == 2
    assert f"its step {gone} was not kept (--steps {kept})" in err
    assert (out / "ledger.json").read_bytes() == before


def test_a_run_that_broke_keeps_its_steps_and_is_gone_on_with(run, monkeypatch):
    from targets.huggingface import HuggingFace

    with monkeypatch.context() as patch:
        patch.setattr(HuggingFace, "lower", lambda *_: (_ for _ in ()).throw(RuntimeError("broke")))
        out, (code, _, _) = run("none")
    assert code == 4
    assert len(list((out / "steps").iterdir())) == 2
    assert run("none", "--resume")[1][0] == 0
    assert list((out / "steps").iterdir()) == []


def test_what_needs_a_step_says_why_it_is_not_there(run, llmc, tmp_path):
    out, _ = run("none")
    (tmp_path / "data.jsonl").write_text('{"question": "One and one?", "answer": "two"}\n')
    task = {"kind": "generation", "data": "data.jsonl", "prompt": "{{ question }}", "answer": "answer"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    code, _, err = llmc("score", out, "--task", tmp_path / "task.yaml", "--row", "rtn:group_size=32")
    assert code == 2
    assert "The run was made with --steps none; make it again with --steps keep." in err


README = "---\nlicense: other\nlicense_name: acorn-1\nlicense_link: https://example.org/acorn\n---\n# A model\n"


@pytest.mark.parametrize("target", ["hf", "onnx-int4", "gguf-q4_0"])
def test_licences_notices_and_the_readme_travel(llmc, tiny_model, tmp_path, target):
    root, out = tiny_model("llama"), tmp_path / "out"
    for name, text in {"LICENSE.txt": "may", "NOTICE": "must", "README.md": README}.items():
        (root / name).write_text(text)
    words = ("--pass", "rtn:group_size=32", "--measure", "none", "-o", out)
    assert llmc("compress", root, "-t", target, *words)[0] == 0
    assert [(out / "artifact" / name).read_text() for name in ("LICENSE.txt", "NOTICE", "README.md")] == [
        "may", "must", README,
    ]  # fmt: skip
    assert "NOTICE" in json.loads((out / "artifact" / "llmc-manifest.json").read_text())["files"]


def test_the_licence_is_in_a_gguf_file(llmc, tiny_model, tmp_path):
    from compressor.gguf.container import GgufFile

    root, out = tiny_model("llama"), tmp_path / "out"
    (root / "README.md").write_text(README)
    words = ("--pass", "rtn:group_size=32", "--measure", "none", "-o", out)
    assert llmc("compress", root, "-t", "gguf-q4_0", *words)[0] == 0
    known = GgufFile.open(out / "artifact" / "model.gguf").metadata
    assert known["general.license"] == "other"
    assert (known["general.license.name"], known["general.license.link"]) == ("acorn-1", "https://example.org/acorn")
