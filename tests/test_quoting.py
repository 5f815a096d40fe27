"""Paths on the command line are taken to the letter."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hypothesis import example, given
from hypothesis import strategies as st

from texture_ad.cli.entry import CONF
from texture_ad.cli.explain import explain
from texture_ad.cli.quoting import LIST_KEYS, NAME_KEYS, PATH_KEYS, check_arguments, multirun_first, quote_paths

NAMES = [
    "photos (1)",
    "日本",
    "é",
    "it's",
    "a,b",
    "x=y",
    "a[b]",
    "tab#1",
    "2024",
    "true",
    "1e3",
    ".5",
    "..",
    "C:\\d\\",
    "{a",
    " a ",
]


def parsed(argument):
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert not override.is_sweep_override()
    return override.value()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", sorted(PATH_KEYS))
def test_a_path_is_taken_to_the_letter(name, key):
    (argument,) = quote_paths([f"{key}={name}"])
    assert parsed(argument) == name
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("key", ["detector", "input", "output", "images", "run_dir", "backbone.weights"])
def test_the_home_of_the_user_is_meant_by_a_tilde_as_in_a_shell(key, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "it's me"))
    for sweep in ([], ["-m"]):
        argument = quote_paths([f"{key}=~/a b.pt", *sweep])[0]
        assert parsed(argument) == str(tmp_path / "it's me/a b.pt")
    assert [parsed(quote_paths([f"{key}={name}"])[0]) for name in ("a~", "~no such user/a")] == [
        "a~",
        "~no such user/a",
    ]
    assert parsed(quote_paths(["token=~/a"])[0]) == "~/a"


@given(st.text(min_size=1, max_size=9))
@example("NULL")
@example("True")
@example("1e5")
@example("nan")
def test_any_path_is_taken_to_the_letter(name):
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "'\""
    if name not in ("null", "???") and "${" not in name and not quoted:
        assert parsed(quote_paths([f"data.root={name}"])[0]) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_place_is_taken_to_the_letter_and_a_list_of_places_by_the_grammar(name):
    (argument,) = quote_paths([f"data.normal={name}"])
    assert parsed(argument) == name
    assert parsed(quote_paths(["data.normal=[OK,'b (1)/*.png']"])[0]) == ["OK", "b (1)/*.png"]
    assert parsed(quote_paths(["data.normal=[OK,'b, c', b (1)/*.png ,it's,it's]"])[0]) == [
        "OK",
        "b, c",
        "b (1)/*.png",
        "it's",
        "it's",
    ]
    assert parsed(quote_paths(["data.roi=[1,2,30,40]"])[0]) == [1, 2, 30, 40]


@pytest.mark.parametrize("name", ["2024_01", "2024", "01", "1.10", "1e3", "true", "nan", "photos (1)", "it's", "x=y"])
@pytest.mark.parametrize("key", sorted(NAME_KEYS))
def test_a_name_is_taken_as_typed(name, key):
    assert str(parsed(quote_paths([f"{key}={name}"])[0])) == name
    assert [str(value) for value in parsed(quote_paths([f"{key}=[{name},b]"])[0])] == [name, "b"]


def test_names_with_commas_are_a_sweep_and_numbers_stay_as_they_were():
    assert quote_paths(["data.category=a,b", "data.category=2024", "data.category=01"]) == [
        "data.category=a,b",
        "data.category=2024",
        "data.category=01",
    ]
    assert quote_paths(["-m", "data.category=2024,01,1.10"])[1] == "data.category=2024,01,'1.10'"


def test_what_is_no_path_stays(tmp_path):
    kept = ["data.root=null", "data.root=${oc.env:HOME}", "data.root='a b'", "seed=0,1", "+experiment=wood", "-m"]
    assert quote_paths(kept) == kept


def test_a_sweep_of_paths_and_a_path_with_a_comma(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert quote_paths(["-m", "data.root=x,y"])[1] == "data.root=x,y"
    assert quote_paths(["-m", "data.root=x (1),it's"])[1] == r"data.root='x (1)','it\'s'"
    kept = ["-m", "data.root=choice(a,b)", "data.masks=null,b"]
    assert quote_paths(kept) == kept
    assert parsed(quote_paths(["-m", f"data.root={tmp_path}/a,b"])[1]) == f"{tmp_path}/a,b"
    assert parsed(quote_paths(["-m", "run_dir=x,y"])[1]) == "x,y"


def test_a_sweep_may_be_asked_for_between_settings():
    assert multirun_first(["b=1", "-m", "a=1,2"]) == ["-m", "b=1", "a=1,2"]
    assert multirun_first(["b=1", "--cfg", "job", "a=1"]) == ["b=1", "--cfg", "job", "a=1"]


def test_hydras_own_options_pass():
    short = ["-cd=conf", "-cn=config", "-cp=conf", "-c=job", "-i=all", "-p=data"]
    check_arguments([*short, "--config-dir=conf", "--cfg=job", "--info=all", "--package=data", "--multirun"])


# Keys of conf/ whose comments speak of files though their values are no paths.
NO_PATHS = {
    "data.category",
    "data.frames",
    "data.layout",
    "data.source",
    "engine",
    "examples",
    "interval",
    "overwrite",
    "report",
    "watch",
}


def test_every_key_of_conf_that_names_a_file_is_taken_to_the_letter():
    found = set()
    for file in Path(CONF).rglob("*.yaml"):
        if file.parent.name == "logger":  # whose names are those of run folders
            continue
        group = "" if file.parent == Path(CONF) else f"{file.parent.name}."
        parents = {0: group}
        for indent, key, comment in re.findall(r"^( *)(\w+):[^#\n]*(#.*)?$", file.read_text(encoding="utf-8"), re.M):
            parents[len(indent) + 2] = f"{parents.get(len(indent), group)}{key}."
            if re.search(r"\b(file|folder|path|detector\.pt)\b", comment):
                found.add(f"{parents[len(indent)]}{key}")
    known = PATH_KEYS | LIST_KEYS
    assert found - known == NO_PATHS
    assert {"backbone.weights", "data.roi", "data.table", "detector", "images"} <= found


def test_a_region_may_be_numbers_or_a_file():
    kept = ["data.roi=[1,2,30,40]", "data.roi=20", "data.roi=null"]
    assert quote_paths(kept) == kept
    assert parsed(quote_paths(["data.roi=roi (1).png"])[0]) == "roi (1).png"


def test_another_argument_is_shown_as_it_has_to_be_written():
    with pytest.raises(OverrideParseException) as error:
        OverridesParser.create().parse_overrides(["data.category=photos (1)"])
    line = explain(error.value)
    assert line.startswith("data.category=photos (1): ") and "https" not in line
    assert "data.category=" in line and "photos (1)" in line.rpartition("write it ")[2]
