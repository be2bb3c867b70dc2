"""What the documents show is true: examples, commands, tables and links, and the code of the two guides."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusionkit.backend import Backend, Kernel
from fusionkit.cli import main
from fusionkit.ops import OP_NAMES
from tests.op_names import NEUTRAL_OPS
from tests.prose import PAGES, ROOT

README = (ROOT / "README.md").read_text()
LAYOUT = (ROOT / "docs/layout.md").read_text()


def blocks(mark: str, text: str) -> list[str]:
    """The fenced code after each such marker comment."""
    found = re.findall(rf"<!-- {mark} -->\n```\w*\n(.*?)```", text, re.S)
    assert found, mark
    return found


def block(mark: str, text: str = README) -> str:
    return blocks(mark, text)[0]


@pytest.mark.parametrize("name", ["README.md", "docs/calling_ops.md", "docs/quantization.md"])
def test_examples_print_what_the_page_says(name, tmp_path):
    page = (ROOT / name).read_text()
    script = tmp_path / "example.py"
    for example, output in zip(blocks("example", page), blocks("output", page), strict=True):
        script.write_text(example)
        run = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert run.stdout == output


def test_readme_table_is_generated():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["ops", "--markdown"])
    assert out.getvalue().strip() in README


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    path = ROOT / name
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)  # a lambda of C++ looks like a link
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
        page = (path.parent / target) if target else path
        assert page.exists(), target
        assert not heading or heading in anchors(page.read_text()), f"{target}#{heading}"


def anchors(page: str) -> list[str]:
    """How headings are named in links."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_an_index_leads_to_every_page():
    """docs/README.md, and for the pages of a folder docs/<folder>.md."""
    for page in map(Path, PAGES[2:]):
        index = ROOT / "docs/README.md"
        if (folder := ROOT / f"{page.parent}.md").exists():
            index = folder
        link = str((ROOT / page).relative_to(ROOT / "docs"))
        assert page.name == "README.md" or f"]({link})" in index.read_text(), f"{index} does not link {page}"


def test_the_chart_is_drawn_from_the_table(tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "chart.png"
    subprocess.run([sys.executable, ROOT / "docs/performance/draw_chart.py", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000


def test_every_command_of_the_launcher_names_its_log_folder():
    """Without --log_dir it makes a folder `log` in the checkout."""
    found = 0
    files = [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "examples", "fusionkit", "tests") for p in (ROOT / d).rglob("*")),
    ]
    for path in (path for path in files if path.suffix in (".md", ".py")):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"-m(?: |\", \")paddle\.distributed\.launch(?!`)", text):
            found += 1
            assert "--log_dir" in text[match.end() : match.end() + 150], f"{path}: {text[match.start() :][:150]}"
    assert found >= 10
    assert "/log/" in (ROOT / ".gitignore").read_text().split()


def files_of(folder):
    """What docs/layout.md counts."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_guide_to_a_backend_works_as_written(tmp_path):
    """The package of the guide, installed by pip beside this fusionkit, is listed, explained and proven."""
    guide = (ROOT / "docs/adding_a_backend.md").read_text()
    toml, package, kernel, attention, use = re.findall(r"```(?:toml|python)\n(.*?)```", guide, re.S)
    source = tmp_path / "fusionkit-abacus"
    (source / "fusionkit_abacus").mkdir(parents=True)
    (source / "pyproject.toml").write_text(toml)
    (source / "fusionkit_abacus/__init__.py").write_text(package)
    (source / "fusionkit_abacus/fusion_rms_norm.py").write_text(kernel)
    (source / "fusionkit_abacus/flash_attention.py").write_text(attention)
    ops = ["flash_attention.py", "fusion_rms_norm.py"]
    assert files_of(source) == sorted(["pyproject.toml", "__init__.py", *ops])
    assert "its package: `pyproject.toml`, `__init__.py` and one file for each op" in LAYOUT
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, tmp_path / "site", source], check=True, capture_output=True)

    def python(code):
        code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    def fusionkit(*arguments):
        return python(f"from fusionkit.cli import main; sys.exit(main({list(arguments)!r}))").stdout

    assert "abacus" in fusionkit("ops").splitlines()[0]
    assert "ok      beads: all there" in fusionkit("doctor")
    assert "-> abacus: chosen" in fusionkit("explain", "fusion_rms_norm", "x=3x8", "weight=8", "--backend", "abacus")
    default = fusionkit("explain", "fusion_rms_norm", "x=3x8", "weight=8")
    assert "-> cpu: chosen" in default and "tried after cpu, the device's own" in default
    refused = fusionkit("explain", "fusion_rms_norm", "x=3x7", "weight=7", "--backend", "abacus")
    assert "hidden_size must be a multiple of 4, got 7" in refused
    assert "fusion_rms_norm  abacus  chosen" in python(use).stdout
    parity = fusionkit("parity", "--backend", "abacus", "--route", "numpy")
    proven = re.search(r"abacus: (\d+) of (\d+) cases right, (\d+) refused", parity)
    assert proven and proven[1] == proven[2] and int(proven[1]) > 0 and int(proven[3]) > 0


@pytest.mark.parametrize("field", [each.name for kind in (Kernel, Backend) for each in dataclasses.fields(kind)])
def test_guide_to_a_backend_names_every_field(field):
    page = (ROOT / "docs/adding_a_backend.md").read_text()
    assert f"`{field}`" in page or f" {field}=" in page


def test_guide_to_a_command_works_as_written(tmp_path):
    guide = (ROOT / "docs/adding_a_command.md").read_text()
    toml, module, shown = re.findall(r"```(?:toml|python|console)\n(.*?)```", guide, re.S)
    source = tmp_path / "fusionkit-sizes"
    source.mkdir()
    (source / "pyproject.toml").write_text(toml)
    (source / "fusionkit_sizes.py").write_text(module)
    assert files_of(source) == ["fusionkit_sizes.py", "pyproject.toml"]
    assert "| [a sub-command](adding_a_command.md) | 0 | 2: `pyproject.toml` and the module |" in LAYOUT
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, tmp_path / "site", source], check=True, capture_output=True)

    def fusionkit(*arguments):
        code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from fusionkit.cli import main"
        return subprocess.run([sys.executable, "-c", f"{code}; sys.exit(main({arguments!r}))"], capture_output=True)

    command, printed = re.search(r"\$ fusionkit (.*)\n(.*)\n", shown).groups()
    assert fusionkit(*command.split()).stdout.decode() == f"{printed}\n"
    assert fusionkit("sizes", "0", "1").returncode == 2
    assert b"print the bytes of a product's output" in fusionkit("--help").stdout


@pytest.mark.parametrize("op", OP_NAMES)
def test_every_op_runs_everywhere(op):
    """The composition, and the neutral op where a traced program may hold the cpu backend's."""
    files = [f"fusionkit/eager/{op}.py"]
    files += [f"backends/cpu/csrc/paddle/{op}.cc"] if op in NEUTRAL_OPS else []
    missing = [name for name in files if not (ROOT / name).exists()]
    assert not missing, f"{op} lacks {', '.join(missing)}. See docs/adding_an_op.md"


def test_every_command_that_installs_installs_ours():
    """The registry gives the name `fusionkit` to another project: ours is installed from its folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if not listed.returncode else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.md")]
    for name in (name for name in names if (ROOT / name).is_file()):  # not the links to folders, for mypy
        if Path(name).suffix in (".md", ".py", ".toml", ".txt", ".cc", ".h", "") and not name.startswith("tests/"):
            text = (ROOT / name).read_text()
            wrong = re.findall(r"pip install [^\n`]*?(?<![\w./-])fusionkit\b(?!')[^\n`]*", text)
            assert not [each for each in wrong if "in fusionkit's source folder" not in each], (name, wrong)
