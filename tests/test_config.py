"""Every configuration composes and instantiates."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import composed
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from texture_ad.cli.entry import CONF
from texture_ad.cli.settings import unused
from texture_ad.data.geometry import Geometry
from texture_ad.methods.registry import method_class
from texture_ad.pipeline import Run

GLOBAL = ("ablation", "experiment", "search")
CHOICES = [
    f"{'+' if group in GLOBAL else ''}{group}={file.stem}"
    for group in sorted(p.name for p in Path(CONF).iterdir() if p.is_dir())
    for file in sorted((Path(CONF) / group).glob("*.yaml"))
]

# What a choice leaves to its user.
GIVEN = {"backbone=timm": ["backbone.name=resnet10t", "backbone.layers=[layer1,layer2]"]}


def small(choice):
    """The configuration of this choice with small random parts, composed once for all tests."""
    return composed(choice, *GIVEN.get(choice, []), "backbone.weights=none", "data.size=64")


@pytest.mark.parametrize("choice", CHOICES)
def test_composes_and_builds(choice, tmp_path):
    config = small(choice)
    run = Run(config, tmp_path)
    detector = run.make("method", make=run.make, geometry=Geometry((64, 64)))
    assert detector.name == config.method.name and detector.geometry.size == (64, 64)
    if detector.name == "fusion":
        assert len(detector.flow.blocks) == config.flow.blocks
        assert len(detector.dictionary.atoms) == config.dictionary.num_atoms


# These set other groups, or nothing; loggers have their own signatures.
NO_TARGET = (*GLOBAL, "protocol", "logger")
TARGETS = [c for c in CHOICES if c.lstrip("+").split("=")[0] not in NO_TARGET and c != "pruning=none"]


@pytest.mark.parametrize("choice", TARGETS)
def test_defaults_live_in_the_configuration_alone(choice):
    """A setting has its default in conf/: what it sets has none of its own, and no setting sets nothing."""
    group = choice.split("=")[0]
    options = dict(small(choice)[group])
    target = get_object(options.pop("_target_"))
    if group == "method":
        target = method_class(options.pop("name"))
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # the trainer's, which hands the rest on
        options = {name: value for name, value in options.items() if name in parameters}
    for name in options:
        assert name in parameters and parameters[name].default is inspect.Parameter.empty, name


def test_paper_protocol_is_the_papers():
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", ["protocol=paper"])
        assert compose("config", ["protocol=paper", "flow.blocks=4"]).flow.blocks == 4
    assert (config.backbone.name, config.data.size, config.data.batch_size) == ("alexnet", 128, 2)
    assert (config.flow.blocks, config.trainer.max_epochs, config.data.eval_batch_size) == (8, 270, 32)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["data.tile=64", "data.size=128"], {"data.tile=64": ["data.size"]}),
        (["data.overlap=8", "data.size=128"], {"data.tile=null": ["data.overlap"]}),
        (["augmentation.flips=true"], {"augmentation.copies=0": ["augmentation.flips"]}),
        (["augmentation=light", "augmentation.gamma=0.1"], {}),
        (["whitening.mode=none", "whitening.components=8"], {"whitening.mode=none": ["whitening.components"]}),
        (["whitening.mode=channel", "whitening.components=8"], {"whitening.mode=channel": ["whitening.components"]}),
        (
            ["score.dictionary_weight=0", "dictionary.nonzeros=2"],
            {"score.dictionary_weight=0": ["dictionary.nonzeros"]},
        ),
    ],
)
def test_settings_that_others_make_useless_are_told(given, why):
    assert unused(composed(*given), [override.partition("=")[0] for override in given]) == why


def test_help_has_every_group_choice_and_default_and_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['run', '--help']\nfrom texture_ad.run import main\ntry: main()\nfinally: "
        "assert not {'torch', 'lightning', 'matplotlib', 'wandb'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("Groups", 1)[1].split("Keys and defaults", 1)[0]
    groups = {m[1]: m[2] for m in re.finditer(r"^  (\w+) +(.*(?:\n {6,}.*)*)", text, re.M)}
    folders = {p.name: {f.stem for f in p.glob("*.yaml")} for p in Path(CONF).iterdir() if p.is_dir()}
    assert groups.keys() == folders.keys()
    for group, choices in folders.items():
        assert choices <= set(re.findall(r"[\w-]+", groups[group])), group
    for default in OmegaConf.load(Path(CONF) / "config.yaml").defaults:
        if default != "_self_":
            ((group, choice),) = default.items()
            assert all(f"{c}*" in groups[group] for c in ([choice] if isinstance(choice, str) else choice)), group


@pytest.mark.parametrize(
    ("module", "arguments", "lines"),
    [
        ("run", [], ["  blocks: 8  # coupling blocks", "seed: 0", "  root: ${oc.env:MVTEC_AD_ROOT,null}"]),
        ("run", ["backbone=resnet18"], ["  layers:  # of PaDiM (Defard et al., ICPR workshops 2021)"]),
        (
            "run",
            ["data=folder"],
            ["  tile: null  # pixels: cut images into tiles at their own resolution instead, such as 256"],
        ),
        ("check", [], ["  copies: 0  # of each training image"]),
        ("predict", [], ["detector: ???  # required: a run's detector.pt", "device: cpu  # or cuda, cuda:1, ..."]),
    ],
)
def test_help_says_what_each_key_means(command, module, arguments, lines):
    code, out, errors = command(module, *arguments, "--help")
    assert code == 0, errors
    for line in lines:
        assert line in out.splitlines(), out


def test_a_reader_that_has_seen_enough_gets_no_trace():
    process = subprocess.Popen(
        [sys.executable, "-m", "texture_ad.run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
