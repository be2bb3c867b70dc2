"""Which module imports which: no circles anywhere, and no arrow upwards between the layers of docs/design.md."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERED = {"fusionkit": ROOT / "fusionkit", "fusionkit_backends.cpu": ROOT / "backends" / "cpu"}
PACKAGES = {"fusionkit": "fusionkit", "fusionkit_backends": "backends", "examples": "examples", "native": "native"}
PACKAGES |= {f"fusionkit_{name}": name for name in ("bench", "emulator", "planner")}

# From the bottom to the top. A name stands for the module and everything below it.
LAYERS = {
    "facts": "errors dtypes ledger entry_points extras pci cores memory foreign rehearsal",
    "a call": "spec frameworks quantized_weight scale_search rounded_activations quantized_arrays gguf_blocks call"
    " arguments capability oracle comparison shards world_size",
    "declarations": "ops backend attempt",
    "what is installed and wanted": "kernel_function registry settings policy",
    "the decision": "select plan op packed_weight",
    "on the ops": "adapters eager nn optimizer parallel passes parity",
    "a backend": "fusionkit_backends.cpu",
    "the command": "cli __main__",
}
ROOT_LAYER = "the decision"  # `import fusionkit` gives the ops, and nothing above them


def modules(folders):
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            yield ".".join([package, *parts]), path


def imported(source, known):
    """The modules among those known that a source imports, at its top or inside of a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [whole] if whole in known else [node.module] if node.module in known else []


def graph(sources):
    return {name: set(imported(source, sources)) - {name} for name, source in sources.items()}


def circle(arrows):
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def layer(module):
    """The position from the bottom."""
    if module == "fusionkit":
        return list(LAYERS).index(ROOT_LAYER)
    inner = module.removeprefix("fusionkit.")
    found = [
        position
        for position, names in enumerate(LAYERS.values())
        if any(inner == name or inner.startswith(f"{name}.") for name in names.split())
    ]
    assert len(found) == 1, f"{module} must stand in one layer of {__file__}, got {found}"
    return found[0]


SOURCES = {name: path.read_text() for name, path in modules(LAYERED)}
ARROWS = graph(SOURCES)


def test_there_are_no_circles():
    """In no package of the repository."""
    everything = {name: ROOT / folder for name, folder in PACKAGES.items()}
    sources = {name: path.read_text() for name, path in modules(everything)}
    assert sources.keys() > SOURCES.keys() and {name.partition(".")[0] for name in sources} == PACKAGES.keys()
    assert circle(graph(sources)) is None


def upwards(arrows, module):
    return {other for other in arrows[module] if layer(other) > layer(module)}


@pytest.mark.parametrize("module", ARROWS)
def test_no_arrow_leads_upwards(module):
    assert not upwards(ARROWS, module)


def test_an_arrow_upwards_out_of_a_function_is_found():
    planted = graph(SOURCES | {"fusionkit.errors": "def f():\n    from fusionkit import select"})
    assert upwards(planted, "fusionkit.errors") == {"fusionkit.select"}


def test_the_core_does_not_know_the_emulator():
    """But for the labels of how far a backend is proven, and the word that a backend may say of its device."""
    named = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fusionkit").rglob("*.py")
        if "emulat" in path.read_text().lower()
    }
    assert named == {"fusionkit/backend.py"}


def test_the_page_says_which_layers_there_are():
    page = (ROOT / "docs" / "design.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ") and line.count("|") == 3]
    listed = {title.strip(): modules.replace("`", "").strip() for title, modules in rows}
    assert {title: names for title, names in listed.items() if title in LAYERS} == LAYERS


def test_a_circle_through_a_function_is_found():
    sources = {"fusionkit.a": "from fusionkit import b", "fusionkit.b": "def f():\n    from fusionkit.a import g"}
    assert set(circle(graph(sources))) == {"fusionkit.a", "fusionkit.b"}
