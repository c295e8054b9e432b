"""What every example trainer shares: command line, training loop, run folder, checkpoints, log, table, plots and the note.

A trainer supplies a `harness.problem.Problem` (model, data, losses, metrics) and hands it to `harness.main.main`.
"""
