"""What the package index and a citation say of the package is what the package is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fusedmix as fm

ROOT = Path(__file__).resolve().parents[1]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Every module that mixes, from the day when README.md names it; Manifold Mixup is one of them, attached to a layer.
METHODS = {name for name in fm.__all__ if name.endswith(("Mix", "MixUp", "Pairing"))} & set(re.findall(r"\w+", README))
METHODS |= {"ManifoldMixup"}


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_method_is_named(project):
    def plain(text):
        return re.sub(r"[^a-z]", "", text.lower())

    assert {"MixUp", "CutMix", "HMix", "GMix", "FMix", "SamplePairing", "EmbedMix", "RandomMix"} <= METHODS
    assert {plain(name) for name in METHODS} <= {plain(word) for word in project["keywords"]}
    # RandomMix draws one of the others: the summary has one line.
    assert not [name for name in METHODS - {"RandomMix"} if plain(name) not in plain(project["description"])]
    assert not [name for name in METHODS if plain(name) not in plain(CITATION)]


def test_the_citation_is_of_this_version(project):
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load(CITATION)
    assert cited["version"] == fm.__version__
    assert (cited["title"], cited["license"]) == (project["name"], project["license"])
    # Every paper that the project's links name.
    assert {url for url in project["urls"].values() if "arxiv" in url} <= {
        paper["url"] for paper in cited["references"]
    }


def test_the_classifiers_begin_with_the_python_that_is_required(project):
    versions = [int(minor) for minor in re.findall(r":: 3\.(\d+)", "\n".join(project["classifiers"]))]
    assert project["requires-python"] == f">=3.{versions[0]}"
    assert versions == list(range(versions[0], versions[-1] + 1))
