"""Configurations composed from Python: values survive Hydra's grammar, and no global state is left behind."""

import subprocess
import sys

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import ListConfig, OmegaConf

from texture_ad.cli.compose import as_overrides, compose, quote
from texture_ad.cli.entry import CONF, check_config
from texture_ad.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


# OmegaConf, not Hydra's grammar, reads ??? and a backslash before ${ its own way.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9).filter(
    lambda t: t != "???" and "\\$" not in t
)
VALUES = st.one_of(
    TEXTS, st.integers(-9, 9), st.booleans(), st.none(), st.floats(-1e3, 1e3), st.lists(TEXTS, max_size=3)
)
PARSER = OverridesParser.create()


@settings(deadline=None, max_examples=100, phases=[Phase.explicit, Phase.generate], derandomize=True)
@given(VALUES)
@example("null")
@example("it's")
@example("C:\\photographs\\")
@example("${seed}")
@example(".5")
@example("./photographs")
def test_every_value_survives_the_grammar(value):
    found = OmegaConf.create({"key": PARSER.parse_override(f"key={quote(value)}").value()})
    assert found.key == value and isinstance(found.key, ListConfig if isinstance(value, list) else type(value))


def test_nested_settings_become_overrides(tmp_path):
    given = {"backbone": "resnet18", "flow": {"blocks": 4}, "data": {"root": tmp_path}, "logger": ["csv", "wandb"]}
    assert list(as_overrides(given)) == [
        "backbone=resnet18",
        "flow.blocks=4",
        f"data.root={quote(str(tmp_path))}",
        "logger=[csv,wandb]",
    ]


def test_a_program_of_hydras_keeps_its_state():
    before = GlobalHydra.instance().hydra
    assert before is not None
    assert compose(["flow.blocks=4"]).flow.blocks == 4
    assert GlobalHydra.instance().hydra is before
    with pytest.raises(Exception, match="nowhere"):
        compose(["nowhere=1"])
    assert GlobalHydra.instance().hydra is before


@pytest.mark.parametrize(
    ("target", "allow", "message"),
    [
        ("os.system", [], r"logger.x._target_=os.system: not a class that conf/ names .* add allow=\[os\]"),
        ("a.b.C", [], r"allow=\[a.b\]"),
        ("a.b.C", ["a.bc", "b", "C", "a.b.C.d"], "not a class"),
        ("a.b.C", "a", "allow=a: expected names of modules"),
        ("a.b.C", [1], "expected names of modules"),
    ],
)
def test_classes_of_others_are_refused(target, allow, message):
    with pytest.raises(UserError, match=message):
        check_config(OmegaConf.create({"logger": {"x": {"_target_": target}}, "allow": allow}), "config")


@pytest.mark.parametrize("allowed", ["a", "a.b", "a.b.C"])
def test_classes_of_others_are_allowed_by_name(allowed):
    check_config(OmegaConf.create({"logger": {"x": {"_target_": "a.b.C"}}, "allow": [allowed]}), "config")


@pytest.mark.parametrize(
    ("config_name", "key"),
    [
        *((name, "detector") for name in ("predict", "update", "serve", "export")),
        ("predict", "input"),
        ("predict", "output"),
        ("update", "images"),
    ],
)
def test_a_path_that_is_needed_is_not_null(config_name, key):
    with pytest.raises(UserError, match=f"^{key}=null: expected a path$"):
        check_config(OmegaConf.create({key: None}), config_name)


def test_a_path_may_be_null_or_not_given_yet():
    check_config(OmegaConf.create({"detector": "???", "images": None, "output": None}), "export")
    check_config(OmegaConf.create({"token": None}), "serve")


def test_importing_the_package_is_light():
    """By what it imports, and by the processor's time: that of the wall is other programs' too."""
    script = (
        "import sys, time; before = set(sys.modules); start = time.process_time(); import texture_ad; "
        "print(time.process_time() - start); "
        "assert {'fit', 'load', 'Detector', 'UserError', '__version__'} <= set(dir(texture_ad)); "
        "print(len(sys.modules.keys() - before), {'torch', 'numpy', 'hydra', 'lightning'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, count, heavy = done.stdout.split(maxsplit=2)
    assert float(seconds) < 0.1 and int(count) < 60 and heavy.strip() == "set()"
