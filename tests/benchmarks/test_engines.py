"""Rows of engines.md that another machine ran."""

import engines

RAN = {"runtime": "vLLM 0.32.0 bfloat16 CPU", "answer": "Paris.", "verdict": "answers", "reason": None}
LACKS = {"runtime": "vLLM >= 0.10", "verdict": "not run", "reason": "no kernel"}
HERE = {"runtime": "transformers 5.17.0 float32 CPU", "answer": "France.", "verdict": "answers", "reason": None}
ELSEWHERE = {"environment": {"cpu": "A CPU (AVX512)"}, "rows": {"gptq": [RAN], "awq": [LACKS]}}


def test_rows_that_were_not_run_here_stand_as_they_ran_elsewhere():
    away = {"cpu": "A CPU (AVX512)", **RAN}
    assert engines.stand([HERE, LACKS], "gptq", ELSEWHERE) == [HERE, away]
    assert engines.stand([], "gptq", ELSEWHERE) == [away]
    assert engines.stand([RAN | {"answer": "Rome."}], "gptq", ELSEWHERE)[0]["answer"] == "Rome."
    assert engines.stand([LACKS], "awq", ELSEWHERE) == [LACKS]
    assert engines.stand([LACKS], "hf", ELSEWHERE) == [LACKS]
    assert engines.stand([LACKS], "gptq", None) == [LACKS]


def test_the_table_says_which():
    machine = {"cpu": "A CPU (AVX2)", "cores": 2, "python": "3.11", "packages": {"torch": "2.13.0"}}
    rows = {"gptq": engines.stand([LACKS], "gptq", ELSEWHERE), "awq": [LACKS], "hf": [HERE]}
    lines = list(engines.render({"model": "tiny", "environment": machine, "rows": rows, "remark": "Once."}))
    assert "| `gptq` | vLLM 0.32.0 bfloat16 CPU | “Paris.” | – | – | – | – | answers |" in lines
    assert "- `gptq` in vLLM 0.32.0 bfloat16 CPU was run on another machine: A CPU (AVX512)." in lines
    assert "- `awq`, vLLM >= 0.10: no kernel" in lines
    assert not any("`hf`" in line for line in lines if line.startswith("-"))
