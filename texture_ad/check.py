"""`python -m texture_ad.check data.root=FOLDER`: say what a run would use for what, and what is wrong, untrained."""

import sys

from omegaconf import DictConfig

from texture_ad.cli.entry import hydra_main


@hydra_main("check")
def main(config: DictConfig) -> None:
    """Print what a run would use for what; end with exit code 2 where it would be refused.

    Raises:
        SystemExit: with code 2.
    """
    from texture_ad.cli.checking import check_data

    if check_data(config):
        sys.exit(2)


if __name__ == "__main__":
    main()
