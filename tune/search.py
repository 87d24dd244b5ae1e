"""Search training settings: ``python tune/search.py``; ``--help`` explains the options."""

import sys
from collections.abc import Sequence

from psalm.train.fields import SettingError
from tune.board import Board
from tune.config import check_data, load_config
from tune.options import LOCAL, free_folder, parse_options, refuse
from tune.progress import Progress, announce, create_console
from tune.resources import this_machine
from tune.results import print_results
from tune.tracking import Tracker, TrackingError


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, run the trials, print the answer.

    Returns:
        0 if a trial completed, 1 if none did, 2 for a mistake in what was asked, 128 + its number after a signal.
    """
    options = parse_options(argv)
    try:
        config = load_config(
            options.config,
            options.assignments,
            options.num_samples,
            options.max_concurrent,
            options.seed,
            options.metric,
            options.resources,
        )
        check_data(config)
        machine = this_machine()
        if options.address == LOCAL:
            config.resources.concurrency([machine], config.max_concurrent)
        folder = free_folder(options.output_dir, config.name)
        tracker = Tracker(options.tracking_uri, folder, config.name)
        tracker.check()
        folder.mkdir()
    except (SettingError, TrackingError, FileExistsError) as mistake:
        return refuse(mistake)

    console = create_console()
    announce(config, folder, console)
    # Ray takes seconds to import: a mistake is told before.
    from ray import tune

    from tune.cluster import Interrupted, ray_session
    from tune.monitor import Monitor, concluded
    from tune.schedulers import create_scheduler
    from tune.study import StudySearcher, create_study
    from tune.trial import TrialPlan, run_trial, trial_name

    board = Board(config.name, config.metric, config.mode, config.max_steps, config.num_samples, config.dependents)
    plan = TrialPlan(folder, config.arguments, config.resources, config.metric, config.dependents)
    searcher = StudySearcher(create_study(config), config.space, config.metric, config.mode, config.max_steps)
    scheduler = create_scheduler(config.scheduler, config.metric, config.mode, config.max_steps)
    exit_code = 0
    try:
        with (
            concluded(board, tracker, folder, config.as_record()),
            Progress(board, console) as progress,
            ray_session(options.address, config.resources, machine, polled=True) as session,
        ):
            at_once = config.resources.concurrency(session.nodes, config.max_concurrent)
            progress.note(f"Ray is up; {at_once} at a time")
            tune.Tuner(
                tune.with_resources(tune.with_parameters(run_trial, plan=plan), plan.own_resources),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=scheduler,
                    num_samples=config.num_samples,
                    max_concurrent_trials=at_once,
                    trial_dirname_creator=trial_name,
                    trial_name_creator=trial_name,
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[Monitor(board, progress, tracker, plan.trial_folder, session.check)],
                ),
            ).fit()
    except SettingError as mistake:
        return refuse(mistake)
    except Interrupted as interrupt:
        console.print(f"Interrupted by {interrupt}", style="magenta")
        exit_code = interrupt.exit_code
    print_results(board, folder, options.tracking_uri, console)
    return exit_code or (0 if board.best else 1)


if __name__ == "__main__":
    sys.exit(main())
