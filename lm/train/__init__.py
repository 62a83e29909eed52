"""Training: the loop, the engine, optimizer, schedules, checkpoints, telemetry."""
