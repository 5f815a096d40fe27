"""Run one experiment, from configuration to results: `python -m texture_ad.run +experiment=carpet`."""

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main


@hydra_main("config")
def main(config: DictConfig) -> float:
    """Run the experiment that a configuration describes, or skip a sweep's job that has finished before.

    Returns:
        What a search maximises, which needs no label: the AUROC on synthetic defects.
    """
    from texture_ad.cli.experiment import run_experiment

    return run_experiment(config)


if __name__ == "__main__":
    main()
