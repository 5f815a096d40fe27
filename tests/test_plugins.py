"""Methods of installed packages, and classes of a user's own: the example plugin installed as its page says."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
from helpers import arguments, environment, few_photographs, read_scores, untrained_detector
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf

import texture_ad
from texture_ad.cli.compose import compose
from texture_ad.environment import plugins
from texture_ad.errors import ParameterError, UserError
from texture_ad.methods.registry import load, method_class
from texture_ad.models.backbone import Backbone

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return few_photographs(tmp_path_factory.mktemp("data") / "carpet")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which pip installed the example."""
    folder = tmp_path_factory.mktemp("installed")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, ROOT / "examples" / "plugin"]
    subprocess.run([sys.executable, *install], check=True, timeout=300)
    return folder


@pytest.fixture
def example(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    yield
    sys.modules.pop("texture_ad_mean_distance", None)
    ConfigStore.instance().repo["method"].pop("mean_distance.yaml", None)


def test_an_installed_plugin_is_a_method_like_ours(example, photographs, command, tmp_path):
    assert [point.name for point in plugins()] == ["mean_distance"]
    quick = arguments(photographs, tmp_path, "method=mean_distance", "method.sigma=2", "pictures=false")
    code, out, errors = command("run", *quick)
    assert code == 0, errors
    assert "fit      mean_distance" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["method"] == "mean_distance" and metrics["image_auroc"] > 0.5
    assert metrics["versions"]["texture-ad-mean-distance"] == "0.1.0"
    config = OmegaConf.load(tmp_path / "config.yaml").method
    assert config == {"_target_": "texture_ad.methods.registry.build", "name": "mean_distance", "sigma": 2}
    detector = texture_ad.load(tmp_path / "detector.pt")
    assert type(detector.module).__module__ == "texture_ad_mean_distance" and detector.module.settings["sigma"] == 2
    found = {f"test/{r.name}": r.score for r in detector.predict(photographs / "test")}
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    expected = {line.split(",")[0]: float(line.split(",")[3]) for line in lines[1:]}
    assert found == pytest.approx(expected, rel=1e-5)
    wrong = ["method.sigma=-1", *(one for one in quick[3:] if not one.startswith("method"))]
    with pytest.raises(UserError, match=r"method.sigma=-1: expected"):
        texture_ad.fit(photographs, method="mean_distance", run_dir=tmp_path / "wrong", progress=False, overrides=wrong)


def test_without_the_plugin_its_method_is_refused():
    with pytest.raises(HydraException, match="Could not find 'method/mean_distance'"):
        compose(["method=mean_distance"])
    with pytest.raises(ParameterError, match="name=mean_distance: expected one of fusion"):
        method_class("mean_distance")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('its part is missing')", "can't be imported .its part is missing"),
        ("Odd = 1", "no subclass of AnomalyDetector with the name 'odd'"),
        ("from texture_ad.methods.padim import PaDiM as Odd", "with the name 'odd'"),
    ],
)
def test_a_plugin_that_is_no_method_is_named(tmp_path, monkeypatch, code, message):
    (tmp_path / "odd.py").write_text(code)
    (tmp_path / "odd.yaml").write_text("- a list")
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[texture_ad.methods]\nodd = odd:Odd\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ParameterError, match=message):
        method_class("odd")
    with pytest.raises(UserError, match=r"odd.yaml: expected keys and values"):
        compose([])
    sys.modules.pop("odd", None)


OWN = """
from texture_ad.data.datamodule import TextureDataModule

class Mine(TextureDataModule):
    def setup(self, stage=None):
        super().setup(stage)
        self.source_name = "mine"
"""


def test_a_class_of_ones_own_runs_where_it_is_allowed(photographs, tmp_path, monkeypatch, command):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    quick = arguments(photographs, tmp_path / "run", "method=padim", "pictures=false", "data._target_=own_data.Mine")
    code, _, errors = command("run", *quick)
    assert code == 2 and "if you trust its code, add allow=[own_data]" in errors
    assert "own_data" not in sys.modules
    code, out, errors = command("run", *quick, "allow=[own_data]")
    assert code == 0, errors
    assert "data     mine, layout mvtec:" in out
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").allow == ["own_data"]
    importlib.invalidate_caches()
    sys.modules.pop("own_data", None)


def test_a_class_in_the_working_folder_is_found_by_the_installed_command_too(photographs, tmp_path):
    (tmp_path / "own_data.py").write_text(OWN)
    quick = arguments(photographs, tmp_path / "run", "method=padim", "pictures=false", "data._target_=own_data.Mine")
    script = "import sys; sys.path.pop(0); from texture_ad.cli.main import main; sys.argv[0] = 'texture-ad'; main()"
    call = [sys.executable, "-c", script, "run", *quick, "allow=[own_data]"]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment(**path))
    assert done.returncode == 0 and "data     mine, layout mvtec:" in done.stdout, done.stderr


def test_the_failed_download_of_a_backbone_of_ones_own_is_one_line(monkeypatch):
    def offline(self, library, name, weights):
        raise URLError("no route")

    monkeypatch.setattr(Backbone, "open_network", offline)
    with pytest.raises(ParameterError, match=r"weights=pretrained: mine's weights could not be downloaded .*no route"):
        Backbone("timm", "mine", ["layer1"], "pretrained", 1, 0, "none", None, 0)


def test_a_backbone_of_ones_own_is_fitted_saved_loaded_and_exported(photographs, tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(ROOT / "examples")
    own = ["backbone=resnet18", "backbone._target_=own_backbone.ResNet34", "backbone.layers=[layer1,layer2]"]
    own.append("backbone.weights=none")
    call = arguments(photographs, tmp_path / "run", "method=padim", "pictures=false", *own)
    code, _, errors = command("run", *call)
    assert code == 2 and "if you trust its code, add allow=[own_backbone]" in errors
    allow = "allow=[own_backbone]"
    code, _, errors = command("run", *call, allow)
    assert code == 0, errors
    assert "own_backbone.ResNet34, layers layer1, layer2" in (tmp_path / "run/model_card.md").read_text().replace(
        "\\", ""
    )
    file = tmp_path / "run/detector.pt"
    for command_name, more in (("predict", [f"input={photographs}/test"]), ("export", ["format=torch_export"])):
        target = tmp_path / f"{command_name}.pt2"
        given = [f"detector={file}", *more, f"output={target}"]
        code, _, errors = command(command_name, *given)
        assert code == 2 and "its backbone is own_backbone.ResNet34; if you trust its code" in errors
        assert not target.exists()
        code, _, errors = command(command_name, *given, allow)
        assert code == 0, errors
    scores = read_scores(tmp_path / "predict.pt2/scores.csv")
    again = texture_ad.load(file, allow=["own_backbone"]).predict(photographs / "test")
    assert {result.name: result.score for result in again} == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    ("target", "message"),
    [("os.system", "no subclass of Backbone"), ("os.nothing", "can't be imported"), ("nowhere.X", "can't be imported")],
)
def test_a_file_that_names_another_class_as_its_backbone_is_refused(tmp_path, target, message):
    path = tmp_path / "detector.pt"
    detector = untrained_detector()
    detector.backbone.settings["_target_"] = target
    detector.save(path)
    with pytest.raises(UserError, match="if you trust its code"):
        load(path)
    with pytest.raises(UserError, match=message):
        load(path, allow=["os", "nowhere"])
