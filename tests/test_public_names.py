"""What `import xcope` gives, and what it leaves until it is asked for."""

import subprocess
import sys

CODE = """
import sys
import xcope
assert all(hasattr(xcope, name) for name in xcope.__all__ if name != "results")
assert "matplotlib" not in sys.modules, "drawing is imported by xcope.inspect and xcope.results"
assert callable(xcope.results)
assert callable(xcope.inspect.trace)
try:
    xcope.inspekt
except AttributeError as error:
    assert "inspekt" in str(error)
else:
    raise SystemExit("an unknown name is no AttributeError")
"""


def test_inspect_is_imported_when_it_is_asked_for():
    subprocess.run([sys.executable, "-c", CODE], check=True)


CLASHES = """
import importlib, pkgutil, sys
for package in ("xcope", "xcope.config", "xcope.training"):
    module = importlib.import_module(package)
    for one in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{one.name}")
    for name in module.__all__:
        value = getattr(module, name)
        assert not hasattr(value, "__path__") and type(value).__name__ != "module", (package, name)
        assert name in dir(module)
    exec(f"from {package} import *")
"""


def test_no_module_hides_a_public_name_of_its_package():
    subprocess.run([sys.executable, "-c", CLASHES], check=True)
