"""Call single functions of a module without importing it, so that input is checked before SAELens is imported.

Importing SAELens takes 5 to 13 seconds, checking a configuration milliseconds. `Definitions` compiles a function,
class or constant from the source of its module, together with those that it refers to, and nothing else. So what
runs before the import is the very code that runs after it, and follows whatever SAELens changes. PyTorch and other
slow packages are placeholders, which raise NeedsImport when they are used.
"""

import ast
import builtins
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# read from their sources
PACKAGES = (
    "sae_lens_matryoshka",
    "research",
    "sae_lens",
    "transformer_lens",
    "sae_bench",
    "sae_probes",
)
# quick to import
QUICK = (
    "filelock",
    "huggingface_hub",
    "numpy",
    "pandas",
    "pydantic",
    "simple_parsing",
    "typing_extensions",
    "yaml",
)


class NeedsImport(Exception):
    """A definition cannot be used before its module is imported."""


class Definitions:
    """
    Definitions of this package, SAELens and others, without importing them.

    Those of modules that are imported already are taken from there, unless their functions would import
    something slow. SAELens's registries hold its configuration classes and this package's, without the SAEs.
    """

    def __init__(self) -> None:
        self._modules: dict[str, _Module] = {}
        self._under_way: set[tuple[str, str]] = set()
        self._empty_registries: dict[str, dict[str, Any]] = {}
        self._builtins = vars(builtins) | {"__import__": self._import}

    def get(self, module: str, name: str) -> Any:
        """
        One definition of a module.

        Args:
            module: The module, such as "sae_lens.config".
            name: The function, class or constant in it.

        Raises:
            NeedsImport: It cannot be had without importing the module.
        """
        found = self._get(module, name)
        while self._empty_registries and not self._under_way:
            self._fill(*self._empty_registries.popitem())
        return found

    def _get(self, module: str, name: str) -> Any:
        if "sae_lens" in sys.modules:
            return getattr(importlib.import_module(module), name)
        if module not in self._modules:
            self._modules[module] = _Module(module, self._builtins)
        source = self._modules[module]
        if module in sys.modules and not source.imports_slow_packages():
            return getattr(sys.modules[module], name)
        self._define(source, name)
        try:
            return source.names[name]
        except KeyError:
            raise NeedsImport(f"{module} has no {name}, or it refers to itself") from None

    def _define(self, module: "_Module", name: str) -> None:
        key = (module.name, name)
        statement = module.statements.get(name)
        if statement is None or name in module.names or key in self._under_way:
            return  # under way: functions that call each other
        self._under_way.add(key)
        try:
            for used in _names_in(statement):
                self._define(module, used)
            code = compile(ast.Module([statement], []), str(module.file), "exec")
            exec(code, module.names)
        except NeedsImport:  # of a decorator or a base class
            module.names[name] = _Placeholder(f"{module.name}.{name}")
        finally:
            self._under_way.remove(key)
        if (module.name, name) in _REGISTRIES.values():
            self._empty_registries[name] = module.names[name]

    def _import(
        self,
        name: str,
        names: dict[str, Any] | None = None,
        _: Any = None,
        wanted: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        """What `import` does in the definitions, at the top of their modules and inside functions."""
        if level:
            assert names is not None
            package = names["__package__"].split(".")
            name = ".".join([*package[: len(package) - level + 1], *([name] if name else [])])
        return self._module(name if wanted else name.partition(".")[0], wanted)

    def _module(self, name: str, wanted: Sequence[str] = ()) -> Any:
        package = name.partition(".")[0]
        if name == "importlib":
            return SimpleNamespace(import_module=self._module)
        if name in sys.modules and package not in PACKAGES:
            return sys.modules[name]
        if package in QUICK or package in sys.stdlib_module_names:
            return importlib.import_module(name)
        return _Lazy(self, name) if package in PACKAGES else _Placeholder(name)

    def _fill(self, registry: str, entries: dict[str, Any]) -> None:
        start = _Module("sae_lens", self._builtins)
        if "entry_points" in start.text:
            raise NeedsImport("plugins may register other architectures")
        for node in ast.walk(start.tree):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and _REGISTRIES.get(call, ("", ""))[1] == registry:
                architecture, _, config_class = map(ast.unparse, node.args)
                entries[ast.literal_eval(architecture)] = None, self.get("sae_lens", config_class)
        if registry == "SAE_TRAINING_CLASS_REGISTRY":
            ours = self.get("sae_lens_matryoshka.saes.config", "MatryoshkaTrainingSAEConfig")
            entries[ours.architecture()] = None, ours


# what registers, and where
_REGISTRIES = {
    "register_sae_class": ("sae_lens.registry", "SAE_CLASS_REGISTRY"),
    "register_sae_training_class": ("sae_lens.registry", "SAE_TRAINING_CLASS_REGISTRY"),
}


class _Module:
    """The source of a module, and what is defined of it so far."""

    def __init__(self, name: str, builtins: dict[str, Any]):
        file = _file_of(name)
        if file is None:
            raise NeedsImport(f"there is no source of {name}")
        self.name, self.file = name, file
        self.text = file.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.statements = _statements_by_name(self.tree)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.names: dict[str, Any] = {
            "__name__": name,
            "__package__": package,
            "__file__": str(file),
            "__builtins__": builtins,
        }

    def imports_slow_packages(self) -> bool:
        """Whether one of its imports, those inside functions included, takes long."""
        imported: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").partition(".")[0])
        return not imported <= {PACKAGES[0], *QUICK, *sys.stdlib_module_names}


class _Lazy:
    """Stands for a module whose definitions are looked up when they are used."""

    def __init__(self, definitions: Definitions, name: str):
        self._definitions, self._name = definitions, name

    def __getattr__(self, name: str) -> Any:
        below = f"{self._name}.{name}"
        if below not in sys.modules and _file_of(below):
            return _Lazy(self._definitions, below)
        return self._definitions.get(self._name, name)


class _Placeholder:
    """Stands for something of a slow package, which may be named, but not used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> "_Placeholder":
        return _Placeholder(f"{self._name}.{name}")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NeedsImport(f"{self._name} is not imported")

    __call__ = __mro_entries__ = __instancecheck__ = __getitem__ = __bool__ = __iter__ = _refuse


def _file_of(module: str) -> Path | None:
    """The file of a module; finding it imports nothing, unlike find_spec."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        place = Path(folder, *rest)
        if (place / "__init__.py").is_file():
            return place / "__init__.py"
        if rest and place.with_suffix(".py").is_file():
            return place.with_suffix(".py")
    return None


def _statements_by_name(tree: ast.Module) -> dict[str, ast.stmt]:
    """The statement that defines each name at the top of a module; an import of several names is split."""
    found: dict[str, ast.stmt] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            named = (n for target in statement.targets for n in ast.walk(target))
            found |= {n.id: statement for n in named if isinstance(n, ast.Name)}
        elif isinstance(statement, ast.AnnAssign):
            found[ast.unparse(statement.target)] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                one = ast.copy_location(ast.Import([alias]), statement)
                found[alias.asname or alias.name.partition(".")[0]] = one
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                one = ast.ImportFrom(statement.module, [alias], statement.level)
                found[alias.asname or alias.name] = ast.copy_location(one, statement)
    return found


def _names_in(statement: ast.stmt) -> list[str]:
    """Names that a definition refers to. Annotations of functions are dropped: nothing reads them."""
    names: set[str] = set()
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.Name):
            names.add(node.id)
            continue
        left.extend(ast.iter_child_nodes(node))
    return sorted(names)
