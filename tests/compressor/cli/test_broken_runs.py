"""Runs that break: exit code 4, nothing half-written, inputs untouched."""


def test_a_full_disk_leaves_nothing_half_written(compress, tiny_model, tmp_path, workload, monkeypatch):
    import errno

    from compressor import writer

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    root = tiny_model("llama")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    code, _, err = compress(root, tmp_path / "out", *workload)
    assert code == 4
    assert "full" in err
    assert list((tmp_path / "out" / "steps").iterdir()) == []
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_an_artifact_that_reads_back_differently_never_appears(compress, tiny_model, tmp_path, workload, monkeypatch):
    from targets import huggingface

    honest = huggingface.HuggingFace.lower

    def damaging(self, checkpoint, out, progress):
        notes = honest(self, checkpoint, out, progress)
        shard = out / "model.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        return notes

    monkeypatch.setattr(huggingface.HuggingFace, "lower", damaging)
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", *workload)
    assert code == 4
    assert "1 of 20 weights changed" in err
    assert not (tmp_path / "out" / "artifact").exists()


def test_an_interrupted_run_says_how_to_go_on(compress, tiny_model, tmp_path, workload, monkeypatch):
    from passes.rtn import RTN

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(RTN, "edit", interrupt)
    out = tmp_path / "out"
    code, _, err = compress(tiny_model("llama"), out, *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err
    assert list((out / "steps").iterdir()) == []
    monkeypatch.undo()
    code, _, _ = compress(tiny_model("llama"), out, *workload, "--resume", spec="rtn:group_size=32")
    assert code == 0


def test_an_extension_that_mistakes_an_interrupt_for_an_error_is_still_an_interrupt(
    compress, tiny_model, tmp_path, workload, monkeypatch
):
    import signal

    from passes.rtn import RTN

    def extension(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(RTN, "edit", extension)
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", *workload, spec="rtn:group_size=32")
    assert code == 4
    assert "--resume" in err
