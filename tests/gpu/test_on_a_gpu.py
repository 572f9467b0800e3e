"""On a card: kernels against their definition in float64, decoders against the CPU."""

import os

from gpu.bias_cases import bias_cases
from gpu.bias_cases import small as small_bias
from gpu.cope_cases import cope_cases
from gpu.cope_cases import small as small_cope
from gpu.model_cases import model_cases


def of_cope(device, quick):
    if device == "cuda":
        backends = ["triton"]
    else:
        backends = ["tiled", "triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["tiled"]
    cases = [case for backend in backends for case in cope_cases(device, backend)]
    return [small_cope(case) for case in cases] if quick else cases


def of_biases(device, quick):
    cases = bias_cases(device, "flex" if device == "cuda" else "tiled")
    return [small_bias(case) for case in cases] if quick else cases


def of_models(device, quick):
    return model_cases(device)


CASES = {
    "test_cope_attention": of_cope,
    "test_attention_with_an_index_bias": of_biases,
    "test_small_decoders": of_models,
}


def pytest_generate_tests(metafunc):
    check = metafunc.config.pluginmanager.get_plugin("gpu_check")
    device, quick = ("cuda", False) if check is None else (check.device, check.quick)
    cases = CASES[metafunc.function.__name__](device, quick)
    names = [f"{case.name}-{case.dtype}-{case.backend}" for case in cases]
    metafunc.parametrize("case", cases, ids=names)


def within_their_bars(found):
    assert found
    assert [str(one) for one in found if not one.ok] == []


def test_cope_attention(case, compared):
    within_their_bars(compared(case))


def test_attention_with_an_index_bias(case, compared):
    within_their_bars(compared(case))


def test_small_decoders(case, compared):
    within_their_bars(compared(case))
