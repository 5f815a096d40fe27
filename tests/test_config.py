"""Every configuration composes and instantiates."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from texture_ad.cli import CONF

CHOICES = [
    f"{'+' if group in ('ablation', 'experiment') else ''}{group}={file.stem}"
    for group in sorted(p.name for p in Path(CONF).iterdir() if p.is_dir())
    for file in sorted((Path(CONF) / group).glob("*.yaml"))
]


@pytest.mark.parametrize("choice", CHOICES)
def test_composes_and_builds(choice, tmp_path):
    from texture_ad.pipeline import build

    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", [choice, "backbone.weights=none", f"run_dir={tmp_path}", "data.size=64"])
    representation, dictionary = build(config, config.data.size)
    assert len(representation.flow.blocks) == config.flow.blocks
    assert dictionary.detector.settings["atoms"] == config.dictionary.atoms


def test_paper_protocol_is_the_papers():
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("config", ["protocol=paper"])
        assert compose("config", ["protocol=paper", "flow.blocks=4"]).flow.blocks == 4
    assert (config.backbone.name, config.data.size, config.data.batch_size) == ("alexnet", 128, 2)
    assert (config.flow.blocks, config.trainer.max_epochs, config.data.eval_batch_size) == (8, 270, 32)
