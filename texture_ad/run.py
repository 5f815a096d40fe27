"""`python -m texture_ad.run +experiment=carpet`: one experiment from configuration to results."""

from omegaconf import DictConfig

from texture_ad.cli import hydra_main

KEYS = {"backbone", "cutpaste", "data", "dictionary", "flow", "logger", "method", "name", "pictures", "quantile",
        "representation", "run_dir", "seed", "trainer"}  # fmt: skip


@hydra_main("config", KEYS)
def main(config: DictConfig) -> None:
    import logging
    import warnings

    # Advice for Lightning's developers and deprecations inside libraries: nothing that a user can act on.
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics)\b")
    from texture_ad.pipeline import run

    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    run(config)


if __name__ == "__main__":
    main()
