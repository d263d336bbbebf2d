import shutil

import pytest

import compressor.inspection as module
from compressor.errors import InputError
from compressor.tokenizer import load_tokenizer


class PanicException(BaseException):  # as pyo3 names what a panic in Rust becomes
    pass


@pytest.mark.parametrize("error", [PanicException("index out of bounds"), SystemExit(1), SystemExit("no")])
def test_what_is_no_exception_ends_in_one_sentence(llmc, tmp_path, monkeypatch, error):
    def panic(*_):
        raise error

    monkeypatch.setattr(module, "describe", panic)
    code, _, err = llmc("inspect", tmp_path)
    assert code == 4
    assert err.startswith("Error: The run broke: ")


def test_a_tokenizer_that_panics_is_bad_input(tiny_model, monkeypatch):
    import transformers

    def panic(*_, **__):
        raise PanicException("AddedVocabulary bad split")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(InputError, match=r"cannot be opened \(AddedVocabulary bad split\)"):
        load_tokenizer(tiny_model("llama"))


def test_inspect_opens_no_pickle_unasked(llmc, tmp_path, tiny_model, adapter_of):
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file

    root = adapter_of(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tensors = load_file(root / "adapter_model.safetensors")
    (root / "adapter_model.safetensors").unlink()
    torch.save(tensors, root / "adapter_model.bin")
    code, _, err = llmc("inspect", root)
    assert code == 2
    assert "adapter_model.bin is a pickle, which can run code when opened" in err
    assert llmc("inspect", root, "--allow-pickle")[0] == 0
    shutil.rmtree(root)
