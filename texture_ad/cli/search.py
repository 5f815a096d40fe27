"""What Hydra's plugin for Optuna leaves out: the same command again does only what is missing of a search."""

import warnings
from collections.abc import Sequence

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from optuna.exceptions import ExperimentalWarning
from optuna.trial import Trial, TrialState

from texture_ad.cli.sweep import DATA
from texture_ad.errors import UserError


def check_direction(sweeper: DictConfig) -> None:
    """Check that a search maximises: what a run returns is an AUROC.

    Raises:
        UserError: it minimises, which is the plugin's default.
    """
    direction = getattr(sweeper.direction, "name", sweeper.direction)
    if direction != "maximize":
        raise UserError(f"hydra.sweeper.direction={direction}: expected maximize, since a run returns an AUROC")


def check_params(sweeper: DictConfig, overrides: Sequence[str]) -> None:
    """Check that a search chooses settings: the highest AUROC over seeds or textures is luck, or the easiest texture.

    Args:
        sweeper: the plugin's settings.
        overrides: of the command line.

    Raises:
        UserError: it chooses among others.
    """
    swept = {
        one.key_or_group for one in OverridesParser.create().parse_overrides(list(overrides)) if one.is_sweep_override()
    }
    for key in ("seed", *DATA):
        if key in swept or key in (sweeper.params or {}):
            raise UserError(
                f"{key}: nothing that a search can choose; give it one value, or leave hydra/sweeper=optuna out"
            )


def check_shared(sweeper: DictConfig) -> None:
    """Check that trials can look at each other, as pruning does.

    Raises:
        UserError: the plugin's settings name no study that another process could open.
    """
    if not (sweeper.storage and sweeper.study_name):
        raise UserError("pruning: trials share nothing to compare; give hydra.sweeper.storage and .study_name")


def resume(sweeper: DictConfig) -> None:
    """Let a search count the trials that its study holds already, and repeat those that were killed.

    A killed trial is the first to be tried again; its job so has the same folder, and resumes there.

    Args:
        sweeper: the plugin's settings; `n_trials` becomes what is missing, and `sampler.seed` another one, since the
            sampler would else draw the first trials once more.
    """
    try:
        study = optuna.load_study(sweeper.study_name, sweeper.storage)
    except KeyError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
    finished = len(study.get_trials(states=(TrialState.COMPLETE,)))
    print(f"search   {finished} of {sweeper.n_trials} trials of the study {sweeper.study_name} are there", flush=True)
    sweeper.n_trials = max(0, sweeper.n_trials - finished)
    if sweeper.sampler.get("seed") is not None:
        sweeper.sampler.seed += len(study.trials)


def running_trial(sweeper: DictConfig, overrides: Sequence[str]) -> Trial:
    """Return the trial that a job runs, of which the plugin tells it nothing: the running one with its settings.

    Args:
        sweeper: the plugin's settings.
        overrides: of the job, each "key=value".

    Raises:
        UserError: the trials share nothing, or the trial runs no more.
    """
    check_shared(sweeper)
    study = optuna.load_study(sweeper.study_name, sweeper.storage)
    running = [
        trial
        for trial in study.get_trials(states=(TrialState.RUNNING,))
        if {f"{key}={value}" for key, value in trial.params.items()} <= set(overrides)
    ]
    if not running:
        raise UserError(
            f"pruning: no such trial of the study {sweeper.study_name} runs; is another command working on it?"
        )
    return Trial(study, running[-1]._trial_id)
