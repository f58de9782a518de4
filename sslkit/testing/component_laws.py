"""What every kind of component keeps."""

from __future__ import annotations

import json
from unittest import SkipTest

from sslkit import installed_components
from sslkit.api import resolve_component
from sslkit.errors import PluginError

from .interpreters import TORCH, in_another_interpreter
from .laws import Laws, UntriedError, law, refuse
from .subject import is_importable, plugin_module

_IMPORTING = """
import builtins, json, locale, logging, os, pathlib, random, signal, sys, threading, warnings
import numpy, torch
import sslkit.api, sslkit.nn.functional, sslkit.host.plugins, sslkit.recipe, sslkit.randomness

OF_TORCH = "TORCHINDUCTOR_CACHE_DIR"  # set when a decorator such as torch.compiler.disable is met


def state():
    return {
        "torch's default type": str(torch.get_default_dtype()),
        "torch's threads": torch.get_num_threads(),
        "torch's random numbers": torch.random.get_rng_state().sum().item(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of matrix products": torch.get_float32_matmul_precision(),
        "torch's gradients": torch.is_grad_enabled(),
        "numpy's random numbers": int(numpy.random.get_state()[1].sum()),
        "numpy's print options": str(numpy.get_printoptions()),
        "numpy's errors": str(numpy.geterr()),
        "Python's random numbers": hash(random.getstate()),
        "the working folder": os.getcwd(),
        "its files": sorted(str(path) for path in pathlib.Path().rglob("*")),
        "environment variables": {k: v for k, v in os.environ.items() if k != OF_TORCH},
        "the level or the handlers of the root logger": str(logging.root.handlers)
        + str(logging.root.level),
        "the handlers of signals": [str(signal.getsignal(n)) for n in (2, 15)],
        "the number of threads": threading.active_count(),
        "the language of numbers": str(locale.getlocale()),
        "the limit of recursion": sys.getrecursionlimit(),
        "the hook of exceptions": repr(sys.excepthook),
    }


before = seen = state()
usual, through = builtins.__import__, {}


def watched(name, globals=None, locals=None, fromlist=(), level=0):
    global seen
    library = name.partition(".")[0]
    known = level > 0 or library in sys.modules
    found = usual(name, globals, locals, fromlist, level)
    if not known:
        now = state()
        for key in now:
            if now[key] != seen[key]:
                through.setdefault(key, library)
        seen = now
    return found


builtins.__import__ = watched
__import__(sys.argv[1])
builtins.__import__ = usual
after = state()
out = {name: name for name in before if before[name] != after[name]}
named = "environment variables"
if named in out:
    old, new = before[named], after[named]
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    out[named] += f" ({' '.join(keys)})"
for name in out:
    if through.get(name) not in (None, sys.argv[1].partition(".")[0]):
        out[name] += f" through its import of {through[name]}"
out = list(out.values())
sys.__stdout__.write("\\n" + json.dumps(out))
"""


class ComponentLaws(Laws):
    """The laws of `Component` and of plugins as a whole."""

    @law("give every field of Config a type that pydantic writes as JSON and reads again")
    def its_configuration_can_be_written_and_read(self) -> None:
        """The block that a resolved recipe saves, read again, is the same configuration."""
        slot = self.subject.slot
        saved = json.loads(json.dumps(slot.dump(), allow_nan=False))
        if slot.distribution == "class":
            fields = {name: value for name, value in saved.items() if name != "name"}
            context = {"registry": installed_components()}
            again = slot.with_config(slot.cls.Config.model_validate(fields, context=context))
        else:
            again = resolve_component(installed_components(), slot.cls.kind, saved)
        refuse(again.dump() != slot.dump(), f"{slot.dump()} became {again.dump()}")

    @law("write a docstring under each field of Config: what it is, and its unit")
    def its_fields_are_described(self) -> None:
        """Each field of the configuration says what it means."""
        fields = self.subject.slot.cls.Config.model_fields
        silent = [name for name, field in fields.items() if not field.description]
        refuse(silent, f"no docstring under {', '.join(silent)}")

    @law("use types that pydantic can describe; Field(json_schema_extra=...) helps for others")
    def its_fields_have_a_schema(self) -> None:
        """The configuration has a JSON Schema, which editors complete and check recipes by."""
        self.subject.slot.cls.Config.model_json_schema()

    @law(
        "move what it does into functions or classes, which run when a recipe asks for them; "
        "import a library that does so in the constructor",
        slow=True,
    )
    def importing_it_changes_nothing(self) -> None:
        """Importing the plugin changes nothing outside its own modules: no random numbers, no
        settings of torch or numpy, no files, no output."""
        module = plugin_module(self.subject.slot)
        if not is_importable(module):
            raise UntriedError(f"{module} is no file that another process can import")
        empty = self.subject.folder / "importing"
        empty.mkdir(exist_ok=True)
        output = in_another_interpreter(
            _IMPORTING,
            module,
            folder=empty,
            as_begun=True,
            prepared=TORCH,
            what=f"importing {module} alone fails",
        )
        printed, _, found = output.rpartition("\n")
        changed = json.loads(found)
        refuse(changed, f"importing {module} changes {', '.join(changed)}")
        refuse(printed.strip(), f"importing {module} prints {printed.strip()[:80]!r}")

    @law(
        "import torch and the classes where they are used, and name classes as 'module:Class'",
        slow=True,
    )
    def listing_it_imports_no_torch(self) -> None:
        """The module with the hooks imports neither torch nor the components: a class is imported
        when a recipe names it."""
        slot = self.subject.slot
        try:
            entry = installed_components().find(slot.cls.kind, f"{slot.distribution}:{slot.name}")
        except PluginError:
            raise UntriedError("no plugin registers it") from None
        package = entry.target.partition(":")[0].partition(".")[0]
        hooks = _hook_modules(entry.distribution)
        if package == "sslkit" or not hooks:
            raise SkipTest("it comes with sslkit")
        script = "import sys; [__import__(m) for m in sys.argv[1:]]; print('torch' in sys.modules)"
        listed = ", ".join(hooks)
        output = in_another_interpreter(script, *hooks, what=f"importing {listed} alone fails")
        refuse(output.split()[-1] == "True", f"importing {listed} imports torch")


def _hook_modules(distribution: str) -> list[str]:
    from sslkit.host.plugins import installed_modules

    return [module for of, module in installed_modules() if of == distribution]
