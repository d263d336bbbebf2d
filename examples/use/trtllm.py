"""Text from a folder of trt-int4, trt-int8, trt-fp8 or trt-nvfp4, with TensorRT-LLM on an NVIDIA GPU.

python trtllm.py ARTIFACT PROMPT
"""

import sys

from tensorrt_llm import LLM, SamplingParams

if __name__ == "__main__":  # TensorRT-LLM starts processes of its own, which import this file again
    folder, prompt = sys.argv[1:]
    model = LLM(model=folder)
    (answer,) = model.generate([prompt], SamplingParams(max_tokens=40, temperature=0))
    print(prompt + answer.outputs[0].text)
