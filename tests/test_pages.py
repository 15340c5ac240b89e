"""What the documents say: every block of Python runs, every command exists, every table is what its source says."""

from __future__ import annotations

import ast
import csv
import importlib
import inspect
import itertools
import re
import shlex
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

import fusedmix as fm
from conftest import required
from fusedmix import cli
from fusedmix.analysis import __main__ as analysis
from pages import UNINSTALLED, blocks, run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of what is installed

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES) if path.exists()]
EXAMPLES = [path for path in (ROOT / "README.md", *PAGES) if path.exists() and blocks(path, "python")]
V2 = ("v2.MixUp", "v2.CutMix", "v2.RandomChoice", "v2.RandomApply")
pytestmark = pytest.mark.skipif(not PAGES, reason="an installed package comes without its documentation")


def name_of(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding="utf-8")


def table_after(path, heading):
    """The rows of the first table under a heading, as lists of cells."""
    after = re.split(rf"^#+ {re.escape(heading)}\n", text_of(path), flags=re.MULTILINE)
    assert len(after) == 2, f"{path.name} has no section {heading}, or several"
    table = re.search(r"(?:^\|.*\n)+", after[1], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


# ---- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # the trainers' advice
@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples(path, monkeypatch, tmp_path):
    """Each page is one program, which begins with nothing."""
    if "timm.data.loader.PrefetchLoader = " in text_of(path):  # What a page replaces in timm is put back after it.
        monkeypatch.setattr("timm.data.loader.PrefetchLoader", required("timm.data.loader").PrefetchLoader)
    monkeypatch.chdir(tmp_path)  # for what trainers write
    torch.manual_seed(0)
    if lacking := run(path):
        pytest.skip(f"without {' and '.join(lacking)} some blocks were left out")


def test_what_a_page_says_is_raised(tmp_path):
    """The comment below a statement is held against what happens, and nothing runs that lacks what it needs."""
    page = tmp_path / "page.md"
    call = "```python\nint('x')\n{}\n```\n"
    page.write_text(call.format("# ValueError: invalid literal ... base 10:\n#   'x'"), encoding="utf-8")
    assert run(page) == []
    for comment in ("# TypeError: invalid literal", "# ValueError: another message"):
        page.write_text(call.format(comment), encoding="utf-8")
        with pytest.raises(AssertionError):
            run(page)
    page.write_text("```python\nint('1')\n# ValueError: invalid literal\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="nothing raised"):
        run(page)
    page.write_text("<!-- needs: a_package -->\n" + call.format(""), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)
        assert run(page) == ["a_package"]


def test_no_example_is_left_out():
    assert {"index.md", "getting-started.md", "methods.md", "troubleshooting.md"} <= {path.name for path in EXAMPLES}
    for path in DOCUMENTS:
        assert not set(re.findall(r"^```(\w+)", text_of(path), re.MULTILINE)) - {"python", "bash"}


def test_code_fits_its_box():
    """Longer lines would have to be scrolled."""
    for path in PAGES:
        for block in (*blocks(path, "python"), *blocks(path, "bash")):
            for number, line in enumerate(block.text.splitlines(), block.line + 1):
                assert len(line) <= 88, f"{name_of(path)}:{number}"


# ---- Commands --------------------------------------------------------------------------------------------------------


def commands():
    """Every command of a fenced block, and every command of this project between single backticks."""
    found = set()
    for path in DOCUMENTS:
        text = "\n".join(block.text for block in blocks(path, "bash")) + "\n"
        text += "\n".join(re.findall(r"`((?:fusedmix [a-z]|python -m |python docs)[^`\n]*)`", text_of(path)))
        for line in text.splitlines():
            words = line.partition(" #")[0].strip()
            found |= {(path, part.strip()) for part in re.split(r"&&|;", words) if part.strip()}
    return sorted(found)


def flags_of(module, monkeypatch, capsys):
    """What a module of benchmarks says that it takes."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as leaving:
        importlib.import_module(module).main()
    assert leaving.value.code == 0
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


@pytest.mark.parametrize(("path", "command"), commands(), ids=lambda x: x if isinstance(x, str) else x.name)
def test_commands(path, command, monkeypatch, capsys):
    """They exist, and take the arguments that they are given. Nothing is run."""
    words = shlex.split(re.sub(r"\$\([^)]*\)|<[a-z]+>", "x", command))
    while "=" in words[0]:
        words = words[1:]
    program, *rest = words
    if program == "fusedmix":
        cli._parser().parse_args(rest)
    elif program in ("python", "bash", ".") and "-m" not in rest:
        assert rest[0].startswith(".venv/") or (ROOT / rest[0]).is_file()
    elif words[:3] in (["python", "-m", "venv"], ["python", "-m", "pip"], ["python", "-m", "build"]):
        pass
    elif words[:3] == ["python", "-m", "fusedmix.analysis"]:
        analysis._parser().parse_args(rest[2:])
    elif program == "python":
        assert rest[1].startswith("benchmarks.")
        if rest[1] in ("benchmarks.data_loader", "benchmarks.train_step"):
            pytest.importorskip("timm")
        given = {word for word in rest if word.startswith("--")}
        assert given <= flags_of(rest[1], monkeypatch, capsys)
    elif program == "pip":
        assert rest[0] == "install"
        known = re.findall(r"^(\w+) = \[", text_of(ROOT / "pyproject.toml"), re.MULTILINE)
        assert {extra for word in rest for extra in re.findall(r"\[(\w+)\]", word)} <= set(known)
    else:
        others = {"accelerate", "auditwheel", "cmake", "ctest", "git", "mkdocs", "pre-commit", "pytest", "rm", "twine"}
        assert program in others


# ---- Figures ---------------------------------------------------------------------------------------------------------


def documents_with_tables():
    return list(importlib.import_module("benchmarks.tables").DOCUMENTS) if PAGES else []


@pytest.mark.parametrize("document", documents_with_tables(), ids=name_of)
def test_tables_are_what_the_committed_results_say(document):
    from benchmarks.tables import DOCUMENTS, differs, filled

    if differs("HEAD", ("csrc",)) is None:
        pytest.skip("there is no history that says which tables are older than their kernels")
    assert filled(document) == text_of(document), "python -m benchmarks.tables"
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text_of(document))) == set(DOCUMENTS[document])


def test_every_table_says_where_it_comes_from():
    from benchmarks.tables import DOCUMENTS, made

    where = r"on [^,]+, torch [^,]+, commit [0-9a-f]+, \d{4}-\d\d-\d\d(; the kernels have changed since)?\.\*"
    source = rf"\*`python -m benchmarks\.\w+[^`]*` {where}"
    for tables in DOCUMENTS.values():
        for table in tables.values():
            text = made(table)
            if text.startswith("There are no results"):
                continue
            _, *each = re.split(r"^(?=\|.*\n\|-)", text, flags=re.MULTILINE)
            assert each
            assert all(re.search(source, part) for part in each)


def test_gpu_tables_come_from_a_gpu_alone(tmp_path, monkeypatch):
    from benchmarks import tables
    from fusedmix.bench.environment import ENVIRONMENT
    from fusedmix.bench.results import Check, write_csv
    from fusedmix.bench.timing import Timing

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    environment = dict.fromkeys(ENVIRONMENT, "") | {"torch": "2.15", "commit": "abc", "date": "2026-01-02T03:04:05"}
    some = {"provider": "fusedmix", "call": "mix_", "method": "MixUp", "p20_us": 1.25, "p80_us": 4.75, "least_us": 1.0}
    rows = [
        Timing("device", **some, backend="cuda", dtype=dtype, shape="256x3x224x224", median_us=median, copy_ratio=ratio)
        for dtype, median, ratio in (("float32", 2.5, 0.875), ("bfloat16", 1.5, 0.9375))
    ]
    rows.append(replace(rows[0], layout="channels_last", median_us=9.5))  # no other time of the contiguous batch
    write_csv(tmp_path / "cpu-mix.csv", rows, environment | {"device": "AMD EPYC"})
    for table in (tables.gpu, tables.gpu_mix, tables.gpu_train_step, tables.gpu_train_step_all):
        assert table() == "There are no results of a GPU in `benchmarks/results`.\n"
    write_csv(tmp_path / "h200-mix.csv", rows, environment | {"device": "NVIDIA H200"})
    write_csv(tmp_path / "h200-targets.csv", [Check("it", 2.0, 1.0, "x")], environment | {"device": "NVIDIA H200"})
    made = tables.gpu()
    assert made.startswith("### NVIDIA H200\n\n#### Time on the device, float32")
    assert made.count("\n*`python -m benchmarks.gpu_mix` on NVIDIA H200, torch 2.15, commit abc, 2026-01-02.*\n") == 4
    assert "left out" not in made
    assert re.findall(r"#### (.*)", made) == [
        "Time on the device, float32 256×3×224×224",
        "Time on the device, bfloat16 256×3×224×224",
        "Time on the device, float32 256×3×224×224 channels_last",
        "Targets",
    ]
    assert re.search(r"\| MixUp: mix_ +\| fusedmix \(cuda\) +\| 2\.50 \(busy\) +\| 1\.25 +\| 4\.75 +\|", made)
    assert "least" not in made
    assert re.search(r"\| it +\| 2 x +\| ≤ 1 +\| \*\*no\*\* +\|", made)


def test_what_was_wrong_is_no_speed(tmp_path, monkeypatch):
    """Times of triton's wrong results at c1b27df, which gpu_mix did not compare, are in the file alone."""
    from benchmarks import tables
    from fusedmix.bench.environment import ENVIRONMENT
    from fusedmix.bench.results import write_csv
    from fusedmix.bench.timing import Timing

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    environment = dict.fromkeys(ENVIRONMENT, "") | {"device": "NVIDIA H100", "torch": "2.11", "date": "2026-11-26"}
    rows = [
        Timing("device", "fusedmix", call, "MixUp", backend, shape="256x3x224x224", median_us=float(n))
        for n, (call, backend) in enumerate(itertools.product(("mix_", "mix", "step", "module"), ("cuda", "triton")), 1)
    ]
    for commit, hidden in (("c1b27df", {"4.00", "6.00", "8.00"}), ("abc", set())):
        write_csv(tmp_path / "h100-mix.csv", rows, environment | {"commit": commit})
        made = tables.gpu()
        times = set(re.findall(r"\| MixUp: \w+ +\| fusedmix \(\w+\) +\| (\d\.\d\d)", made))
        assert times == {f"{row.median_us:.2f}" for row in rows} - hidden
        assert ("3 rows of `triton` are left out here" in made) == bool(hidden)


def test_every_row_of_the_results_is_shown():
    from benchmarks.common import RESULTS
    from benchmarks.tables import PERFORMANCE, is_shown

    shown = text_of(PERFORMANCE)
    gpus = [path.stem for path in RESULTS.glob("*-mix.csv") if path.stem != "cpu-mix"]
    for name in ("cpu-mix", "cpu-fmix", "cpu-loss", *gpus):
        with (RESULTS / f"{name}.csv").open(newline="") as file:
            for row in filter(is_shown, csv.DictReader(file)):
                what = f"{row['method']}: {row['call']}" if row["method"] else row["call"]
                median, low, high = (float(row[column]) for column in ("median_us", "p20_us", "p80_us"))
                times = [f"{t:.2f}" if t < 10 else f"{t:.1f}" if t < 100 else f"{t:.0f}" for t in (median, low, high)]
                times[0] += " (busy)" if high > 2 * low else ""
                line = r"\| " + re.escape(what) + r" .*" + r" +\| ".join(map(re.escape, times)) + " "
                assert re.search(line, shown), row


# ---- Tables of names -------------------------------------------------------------------------------------------------


def peers():
    """The page and the heading of each table, and the name of what it is about."""
    pages = {
        "migrating-torchvision.md": [f"torchvision.transforms.{name}" for name in V2],
        "migrating-timm.md": ["timm.data.Mixup", "timm.data.FastCollateMixup", "timm.data.loader.PrefetchLoader"],
        "migrating-others.md": re.findall(r"^### `(\w+\.[\w.]+)`", text_of(DOCS / "migrating-others.md"), re.MULTILINE)
        if PAGES
        else [],
    }
    return [
        (page, name.removeprefix("torchvision.transforms."), name) for page, names in pages.items() for name in names
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "heading", "name"), peers())
def test_every_keyword_of_the_peers(page, heading, name, monkeypatch):
    """The tables of keywords and defaults are the live signatures."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    module, _, attribute = name.rpartition(".")
    library = name.partition(".")[0]
    found = pytest.importorskip(module, exc_type=ImportError) if library in UNINSTALLED else required(module)
    expected = [
        (f"`{key}`", "*required*" if p.default is inspect.Parameter.empty else f"`{p.default!r}`")
        for key, p in inspect.signature(getattr(found, attribute)).parameters.items()
        if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    assert [tuple(row[:2]) for row in table_after(DOCS / page, f"`{heading}`")] == expected


def test_keywords_that_are_named_exist():
    """`name=` in a cell of a migration table is a keyword of ours."""
    from fusedmix.integrations import torchvision

    keywords = set(fm.transforms.Options.__annotations__)
    functions = (fm.functional.mixup, fm.mix_binary_cross_entropy, fm.MixPlan.from_parts, torch.compile)
    for thing in (fm.MixUp, fm.CutMix, fm.HMix, fm.FMix, fm.RandomMix, *functions):
        keywords |= set(inspect.signature(thing).parameters)
    for page in ("migrating-torchvision.md", "migrating-timm.md", "migrating-others.md"):
        for line in text_of(DOCS / page).splitlines():
            if line.startswith("|"):
                for code in re.findall(r"`([^`]*)`", line):
                    named = re.findall(r"\b([a-z_]+)=", code) if code != repr(torch.device("cuda")) else []
                    assert set(named) <= keywords, line
    ours = inspect.signature(torchvision.get_mixup_cutmix).parameters
    rows = table_after(DOCS / "migrating-torchvision.md", "The reference training")
    assert [row[0] for row in rows] == [f"`{key}`" for key in ours]


def test_flags_of_timms_training():
    """Each sets a keyword, and with the keywords that have no flag they are all that Mixup takes."""
    timm = required("timm.data")
    rows = table_after(DOCS / "migrating-timm.md", "Flags of `train.py`")
    named = {row[2].strip("`") for row in rows if row[2].startswith("`")}
    assert named == set(inspect.signature(timm.Mixup).parameters) - {"correct_lam", "multi_label"}


@pytest.mark.parametrize("page", ["getting-started.md", "migrating-torchvision.md"])
def test_pages_know_the_options(page):
    options = set(fm.transforms.Options.__annotations__)
    text = text_of(DOCS / page)
    if page == "getting-started.md":
        table = table_after(DOCS / page, "One mask for each sample")
        assert {row[0].strip("`") for row in table} <= options
        assert {row[0]: row[2] for row in table}["`p`"] == f"{fm.MixUp().p:g}"
    else:
        last = text.partition("## What has no counterpart there")[2]
        there = {"num_classes", "labels_getter", "p"}
        assert set(re.findall(r"`([a-z_]+)`", last)) == options - there


def test_parameters_of_the_methods():
    """The table of methods has every module with its keywords and their defaults."""
    rows = table_after(DOCS / "methods.md", "The methods")
    found = {re.match(r"`(\w+)`", row[0])[1]: row[1] for row in rows}
    assert set(found) == {
        name
        for name in fm.__all__
        if isinstance(getattr(fm, name), type) and issubclass(getattr(fm, name), fm.MixTransform)
    } - {"MixTransform"}
    for name, cell in found.items():
        parameters = inspect.signature(getattr(fm, name)).parameters
        expected = {key: p.default for key, p in parameters.items() if key not in fm.transforms.Options.__annotations__}
        said = dict(re.match(r"(\w+)=?(.*)", code).groups() for code in re.findall(r"`([^`]*)`", cell))
        assert list(said) == list(expected)
        for key, default in expected.items():
            assert default is inspect.Parameter.empty or ast.literal_eval(said[key]) == default


def test_reference_pages_show_every_keyword():
    """What the pages are made from has the signatures and docstrings of the modules as they run."""
    griffe = required("griffe")
    extensions = griffe.load_extensions(str(DOCS / "signatures.py"))
    package = griffe.load("fusedmix", search_paths=[ROOT], extensions=extensions)
    for cls in (fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.SamplePairing, fm.RandomMix, fm.EmbedMix):
        page = package[cls.__module__.removeprefix("fusedmix.")][cls.__name__]
        shown = {p.name: p.default for p in page["__init__"].parameters if p.name != "self"}
        signature = inspect.signature(cls).parameters
        assert list(shown) == list(signature)
        for name, parameter in signature.items():
            required_one = parameter.default is inspect.Parameter.empty
            assert shown[name] is None if required_one else ast.literal_eval(shown[name]) == parameter.default
        described = next(part for part in page.docstring.parse("google") if part.kind.value == "parameters").value
        assert [(p.name, p.default) for p in described] == list(shown.items())
    options = package["options.Options"].docstring.parse("google")
    described = next(part for part in options if part.kind.value == "attributes").value
    for attribute in described:
        assert (
            f"(Default: `{inspect.signature(fm.MixUp).parameters[attribute.name].default!r}`.)" in attribute.description
        )
    assert [attribute.name for attribute in described] == list(inspect.signature(fm.SamplePairing).parameters)


def test_variables():
    """The tables of environment variables are what the sources read."""
    sources = [*(ROOT / "fusedmix").rglob("*.py"), ROOT / "setup.py"]
    read = {name for path in sources for name in re.findall(r"environ[^\n]{0,10}[\"'](FUSEDMIX_\w+)", text_of(path))}
    read |= {
        name
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".cu") and "shim" not in path.parts
        for name in re.findall(r"getenv\(\"(FUSEDMIX_\w+)", text_of(path))
    }
    assert "FUSEDMIX_BACKEND" in read
    rows = table_after(DOCS / "troubleshooting.md", "Environment variables")
    assert {name for row in rows for name in re.findall(r"FUSEDMIX_[A-Z_]+", row[0])} == read


def literals():
    """The strings of the sources, what is filled in as a gap."""
    for path in (ROOT / "fusedmix").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_troubleshooting_quotes_is_said():
    """Reasons word for word but for the gaps; of messages in headings, most of which blocks raise, 3 words."""
    said, page = list(literals()), text_of(DOCS / "troubleshooting.md")
    first = '"fusedmix: ... batches are mixed by plain PyTorch operations"'
    reasons = [row[0] for row in table_after(DOCS / "troubleshooting.md", first) if row[0][0] == "`"]
    assert len(reasons) > 12
    for reason in reasons:
        parts = re.split(r" ?\.\.\.:? ?| \(\.\.\.\)", reason.strip("`"))
        assert any(re.search(".*".join(map(re.escape, parts)), line, re.DOTALL) for line in said), reason
    for heading in re.findall(r"^### (.*)", page, re.MULTILINE):
        for quote in re.findall(r'"(.+?)"', heading):
            words = quote.split()
            threes = [" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))]
            assert any(three in line for three in threes for line in said) or quote == "host", quote


# ---- The site --------------------------------------------------------------------------------------------------------


def module_at(path):
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name():
    pages = "\n".join(text_of(path) for path in (DOCS / "reference").glob("*.md"))
    pages = module_at(DOCS / "modules.py").on_page_markdown(pages)
    documented = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    for name in set(fm.__all__) - {"__version__"}:
        assert f"fusedmix.{name}" in documented, name
    for path in documented:
        module, _, name = path.rpartition(".")
        if path != "fusedmix.schedules" and not module.startswith("fusedmix.integrations"):
            assert getattr(importlib.import_module(module), name).__doc__


def test_pictures():
    """Every picture is drawn by the script and stands on a page."""
    names = re.findall(r'^    "(\w+)": \w+,$', text_of(DOCS / "pictures" / "draw.py"), re.MULTILINE)
    assert sorted(f"{name}.svg" for name in names) == sorted(path.name for path in (DOCS / "pictures").glob("*.svg"))
    pages = "\n".join(text_of(path) for path in PAGES)
    assert all(f"(pictures/{name}.svg)" in pages for name in names)


@pytest.fixture
def draw(monkeypatch):
    """The script that draws pictures. It chooses a backend for its process, which here is no longer than for a test."""
    required("matplotlib")
    monkeypatch.setenv("FUSEDMIX_BACKEND", "reference")
    return module_at(DOCS / "pictures" / "draw.py")


def test_diagrams_are_what_the_script_draws(draw, tmp_path):
    """Those that hold nothing random. Words are compared: another matplotlib may place letters elsewhere."""
    mpl = required("matplotlib")
    mpl.use("svg")
    for name in ("way", "cycle", "columns", "floor", "one_pass", "randomness"):
        figure = draw.PICTURES[name]()
        figure.savefig(tmp_path / "x.svg")
        drawn, kept = text_of(tmp_path / "x.svg"), text_of(DOCS / "pictures" / f"{name}.svg")
        words = [re.findall(r"<!-- (.*?) -->", text) for text in (drawn, kept)]
        assert words[0]
        assert words[0] == words[1]


@pytest.mark.thorough
def test_small_pictures_are_what_the_script_draws(draw):
    """Each stands in the table of methods, once, and JPEG changes a grey value by little."""
    for module in ("skimage", "sklearn"):
        required(module)
    pyplot = required("matplotlib.pyplot")
    rows = [row[0] for row in table_after(DOCS / "methods.md", "The methods")]
    shown = dict(re.match(r"`(\w+)` .*!\[\1: .+\]\((\S+)\)$", row).groups() for row in rows if "![" in row)
    drawn = draw.small_pictures()
    assert shown == {name: f"pictures/methods/{name.lower()}.jpg" for name in drawn}
    files = sorted((DOCS / "pictures" / "methods").iterdir())
    assert files == sorted(DOCS / path for path in shown.values())
    assert sum(file.stat().st_size for file in files) < 400_000
    for name, path in shown.items():
        kept = torch.tensor(pyplot.imread(DOCS / path)).permute(2, 0, 1) / 255
        assert (kept - drawn[name]).abs().mean() < 0.03, name


def test_site_has_every_page():
    config = text_of(ROOT / "mkdocs.yml")
    nav = set(re.findall(r"[\w/-]+\.md", config.partition("\nnav:\n")[2]))
    assert nav <= {str(path.relative_to(DOCS)) for path in PAGES}
    assert "strict: true" in config
