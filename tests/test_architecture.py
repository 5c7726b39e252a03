"""The layout's arrows point down, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from amc_mobile.formats import FORMATS, PHONE_RUNTIMES

PACKAGE = Path(__file__).parent.parent / "amc_mobile"
COMMANDS = ("cli_devices",)
FLOORS = {
    "__main__": 7,
    **dict.fromkeys(("cli", *COMMANDS, "cli_options"), 6),
    "workflows": 5,
    "search": 4, "report": 4,
    "latency": 3,
    "pruning": 2, "kernels": 2,
    "channels": 1, "export": 1, "models": 1, "data": 1, "device": 1,
    "store": 0, "user_file": 0, "packing": 0, "formats": 0,
    "errors": -1,  # everything may raise
}  # fmt: skip
# The command line is in parts that lean on each other.
PARTS = {*(("cli", part) for part in COMMANDS), *((part, "cli_options") for part in ("cli", *COMMANDS))}
TORCH_FREE = (
    "device",
    "latency",
    "report",
    "cli",
    "channels/plan",
    "channels/structure",
    "kernels/kernel",
    "errors",
    "store",
)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.module != "amc_mobile" else [f"amc_mobile.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("amc_mobile.")}
    return found - {"__version__"}


def upward_arrows(path: Path) -> list[str]:
    part = part_of(path)
    return [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for other in sorted(imported_parts(path))
        if other != part and (part, other) not in PARTS and FLOORS[other] >= FLOORS[part]
    ]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_to_lower_floors(path: Path) -> None:
    assert upward_arrows(path) == []


def test_an_arrow_that_points_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "channels" / "wrong.py"
    module.parent.mkdir()
    module.write_text("from amc_mobile.search import loop\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert upward_arrows(module) == ["channels/wrong.py imports search"]


def test_the_light_modules_pull_in_no_torch() -> None:
    light = [
        "amc_mobile." + str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        for path in MODULES
        if path.stem != "__init__" and str(path.relative_to(PACKAGE)).startswith(TORCH_FREE)
    ]
    program = (
        f"import sys, importlib\nfor name in {light!r}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


RUNTIME_WORDS = {
    word
    for form in FORMATS.values()
    for word in (form.name, form.suffix, form.runtime, form.package, form.module, form.delegate, form.exporter)
} | set(PHONE_RUNTIMES)


def runtime_literals(path: Path) -> list[str]:
    """Strings of a file that name a format or a runtime; parts of longer texts are not meant."""
    constants = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return [f"{path.name}:{node.lineno} {node.value}" for node in constants if node.value in RUNTIME_WORDS]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_formats_and_runtimes_are_named_in_one_module(path: Path) -> None:
    assert runtime_literals(path) == [] or path == PACKAGE / "formats.py"


def test_a_runtime_that_is_named_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text('"""Of tflite."""\nif name == "tflite":\n    print("tflite runs")\n')
    assert runtime_literals(tmp_path / "wrong.py") == ["wrong.py:2 tflite"]


MOST_MODULES = 96  # 95 of one phone and one CPU, and accelerators
# Apart from these, a module that one other imports is a part of it.
FAMILIES = ("cli", "workflows/", "models/zoo/", "kernels/tflite", "kernels/onnx", "data/sources")
POLICIES = ("search/critic", "search/ddpg")
BOUNDARIES = {
    "search/policies": "the registry of policies, which workflows open by name",
    "device/benchmark_model": "another way to measure on a phone, for those who have no library",
}


def module_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def importers() -> dict[str, set[str]]:
    """By module, the files of the package that import it."""
    by: dict[str, set[str]] = {module_of(path): set() for path in MODULES if path.stem != "__init__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amc_mobile"):
                base = (node.module or "").replace(".", "/").removeprefix("amc_mobile").lstrip("/")
                for name in {base, *(f"{base}/{alias.name}".lstrip("/") for alias in node.names)} & set(by):
                    by[name].add(module_of(path))
    return by


def test_ideas_are_not_cut_into_parts() -> None:
    by = importers()
    assert len(by) <= MOST_MODULES
    alone = {name for name, users in by.items() if len(users) == 1 and not name.startswith((*FAMILIES, *POLICIES))}
    assert alone <= set(BOUNDARIES)


def test_public_classes_have_names_of_their_own() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module_of(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


# Workflows give each other dataclasses. JSON is made and read by functions of these names, and by private ones.
JSON_FUNCTIONS = ("document", "to_document", "from_document", "settings_from_document")


def untyped_documents(path: Path) -> list[str]:
    """Public functions, methods and fields of a module that are annotated with a dictionary of anything."""

    def names(owner: str, body: list[ast.stmt]) -> list[str]:
        found = []
        for node in body:
            name = f"{owner}{getattr(node, 'name', '')}"
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found += names(f"{name}.", node.body)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = node.args
                every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                annotations = [node.returns, *(argument.annotation for argument in every)]
                if node.name not in JSON_FUNCTIONS and any(map(_is_untyped, annotations)):
                    found.append(name)
            elif isinstance(node, ast.AnnAssign) and _is_untyped(node.annotation):
                found.append(f"{owner}{ast.unparse(node.target)}")
        return found

    return names("", ast.parse(path.read_text()).body)


def _is_untyped(annotation: ast.expr | None) -> bool:
    text = ast.unparse(annotation) if annotation is not None else ""
    return any(word in text for word in ("dict[str, Any]", "Mapping[str, Any]"))


@pytest.mark.parametrize("path", sorted((PACKAGE / "workflows").glob("*.py")), ids=lambda p: p.stem)
def test_workflows_hand_on_dataclasses(path: Path) -> None:
    assert untyped_documents(path) == []


def test_a_dictionary_of_anything_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "class A:\n    rows: list[dict[str, Any]]\n    def document(self) -> dict[str, Any]: ...\n"
        "    def show(self) -> dict[str, Any]: ...\n"
        "def take(what: Mapping[str, Any]) -> None: ...\ndef _own() -> dict[str, Any]: ...\n"
    )
    assert untyped_documents(tmp_path / "wrong.py") == ["A.rows", "A.show", "take"]
