import pytest, torch
from compressor.quantized import Scheme
from targets.tensorrt_llm import TrtInt4, check_loadable
from targets.vllm import VllmInt4
from targets.huggingface import HuggingFace

@pytest.mark.parametrize("tied",[True,False])
@pytest.mark.parametrize("family",["llama","mistral","qwen2","qwen3"])
@pytest.mark.parametrize("kind",[TrtInt4,VllmInt4,HuggingFace])
def test_x(tiny_model,quantize,lower,verified,family,tied,kind):
    q=quantize(tiny_model(family,tied=tied),Scheme(4,64))
    t=kind()
    assert not t.problems(q.architecture,q.schemes)
    a,notes=lower(t,q)
    print(notes,t.run_command(str(a.root)),[p.name for p in a.root.iterdir()])
    v=verified(t,a,q)
    assert not v.mismatches
