"""Make a W&B workspace and report that compare runs and sweeps: `texture-ad workspace TEAM`.

Needs a key, a server and `pip install ".[wandb]"`. Runs are grouped by group (the sweep) and job type (the setting
without its seed), as `texture_ad.reporting.loggers.wandb` names them: every line and bar is a mean over seeds.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from texture_ad.environment import not_installed
from texture_ad.errors import UserError
from texture_ad.reporting.metrics import ACCURACIES

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

_CURVES = {
    "Stage 1": ("val/nll", "val/auroc", "train/loss", "train/nll", "train/pretext", "train/patch"),
    "Stage 2": ("dictionary/residual",),
}
_METRICS = [*(name for name, metric in ACCURACIES.items() if metric.compared), "fit_seconds", "test_seconds_per_image"]
_RESULTS = [f"test/{name}" for name in _METRICS]
_MEDIA = ("figures/scores", "figures/roc_pr", "figures/histogram", "figures/tsne", "figures/atoms")
_SPREAD: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def _sections() -> dict[str, list[Any]]:
    """Return a section's name to its panels."""
    import wandb_workspaces.reports.v2 as wr

    sections: dict[str, list[Any]] = {
        "Results": [wr.BarPlot(title=name, metrics=[name], **_SPREAD) for name in _RESULTS]
    }
    for stage, names in _CURVES.items():
        sections[stage] = [wr.LinePlot(title=name, x="trainer/global_step", y=[name], **_SPREAD) for name in names]
    sections["Figures"] = [wr.MediaBrowser(media_keys=[key]) for key in _MEDIA]
    sections["Settings"] = [wr.RunComparer(diff_only="split")]
    return sections


def build_workspace(team: str, project: str) -> "workspaces.Workspace":
    """Return the workspace, not saved yet.

    Args:
        team: entity of the server.
        project: of the server.
    """
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=panels, is_open=name in ("Results", "Stage 1"))
        for name, panels in _sections().items()
    ]
    runs = ws.RunsetSettings(
        groupby=[ws.Metric("Group"), ws.Metric("JobType")],
        order=[ws.Ordering(ws.Summary("test/synthetic_auroc"), ascending=False)],
    )
    return ws.Workspace(entity=team, project=project, name="Texture anomalies", sections=sections, runset_settings=runs)


def build_report(team: str, project: str, group: str | None) -> "reports.Report":
    """Return the report, not saved yet.

    Args:
        team: entity of the server.
        project: of the server.
        group: name of the only sweep that is reported, None for all runs.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    filters = [expr.Metric("Group") == group] if group else []
    runs = wr.Runset(
        entity=team, project=project, name=group or "all runs", groupby=["Group", "JobType"], filters=filters
    )
    blocks: list[Any] = [
        wr.P(
            "Every run's data source is in its config as data_source; embedded data are generated and no "
            "benchmark. Settings are chosen by synthetic_auroc, never by a test metric."
        ),
        wr.TableOfContents(),
    ]
    for name, panels in _sections().items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=team, project=project, title=f"Texture anomalies: {group or project}", blocks=blocks)


def _save(team: str, project: str, group: str | None) -> str:
    """Save the workspace and the report; return the report's address."""
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(not_installed("wandb-workspaces", "wandb")) from error
    from texture_ad.reporting.loggers.wandb_server import offline_reason

    reason = offline_reason()
    if reason:
        raise UserError(f"W&B: {reason}; this needs a server: wandb login, and WANDB_BASE_URL for a server of yours")
    build_workspace(team, project).save()
    report = build_report(team, project, group)
    report.save()
    return report.url


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, save the workspace and the report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="texture-ad workspace", description=__doc__.split("\n\n")[0])
    parser.add_argument("team", help="W&B's entity")
    parser.add_argument("--project", default="texture_ad")
    parser.add_argument("--group", help="a sweep's name; the report is then of this sweep alone")
    options = parser.parse_args(arguments)
    try:
        print(f"report   {_save(options.team, options.project, options.group)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
