"""What every example trainer shares: run folder, checkpoints, log, schedule, the training loop, plots and the note.

A trainer supplies a `harness.problem.Problem` (model, data, losses, metrics) and calls `harness.training.Training(...).run()`.
"""
