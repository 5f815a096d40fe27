"""Run one experiment, from configuration to results: `python -m texture_ad.run +experiment=carpet`."""

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main


@hydra_main("config")
def main(config: DictConfig) -> None:
    """Run the experiment that a configuration describes, or skip a sweep's job that has finished before."""
    from texture_ad.cli.experiment import run_experiment

    run_experiment(config)


if __name__ == "__main__":
    main()
