"""Triton's interpreter, which patches its language for every function that a kernel calls."""

import contextlib
import importlib
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _patched_once():
    """Have a kernel patch the language once, not for each of a thousand calls, always the same.

    What a kernel patches is undone when it ends, so the next one patches anew.
    """
    interpreter = None
    if os.environ.get("TRITON_INTERPRET") == "1":
        with contextlib.suppress(ImportError):
            interpreter = importlib.import_module("triton.runtime.interpreter")
    if not hasattr(interpreter, "_LangPatchScope"):  # older versions have none
        yield
        return
    patch_lang, execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched = set()

    def once(fn):
        if id(fn.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(fn.__globals__))
        return patch_lang(fn)

    def one_kernel(self, *args, **kwargs):
        patched.clear()
        return execute(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", once)
        patch.setattr(interpreter.GridExecutor, "__call__", one_kernel)
        yield
