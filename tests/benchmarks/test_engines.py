"""Rows of engines.md that another machine ran."""

import engines

RAN = {"runtime": "vLLM 0.32.0 bfloat16 CPU", "answer": "Paris.", "verdict": "answers", "reason": None}
LACKS = {"runtime": "vLLM >= 0.10", "verdict": "not run", "reason": "no kernel"}
HERE = {"runtime": "transformers 5.17.0 float32 CPU", "answer": "France.", "verdict": "answers", "reason": None}
ELSEWHERE = {"environment": {"cpu": "A CPU (AVX512)"}, "rows": {"gptq": [RAN], "awq": [LACKS]}}


def test_rows_that_were_not_run_here_stand_as_they_ran_elsewhere():
    assert engines.standing([HERE, LACKS], "gptq", ELSEWHERE) == [HERE, {"cpu": "A CPU (AVX512)", **RAN}]
    assert engines.standing([LACKS], "awq", ELSEWHERE) == [LACKS]
    assert engines.standing([LACKS], "hf", ELSEWHERE) == [LACKS]
    assert engines.standing([LACKS], "gptq", None) == [LACKS]


def test_the_table_says_which():
    machine = {"cpu": "A CPU (AVX2)", "cores": 2, "python": "3.11", "packages": {"torch": "2.13.0"}}
    rows = {"gptq": engines.standing([LACKS], "gptq", ELSEWHERE), "awq": [LACKS], "hf": [HERE]}
    lines = list(engines.render({"model": "tiny", "environment": machine, "rows": rows, "remark": "Once."}))
    assert "| `gptq` | vLLM 0.32.0 bfloat16 CPU | “Paris.” | – | – | – | – | answers |" in lines
    assert "- `gptq` in vLLM 0.32.0 bfloat16 CPU was run on A CPU (AVX512), which has the kernel." in lines
    assert "- `awq`, vLLM >= 0.10: no kernel" in lines
    assert not any("`hf`" in line for line in lines if line.startswith("-"))
