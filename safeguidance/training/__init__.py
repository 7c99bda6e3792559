"""Training: one loop, its checkpoints and processes, and one task per thing that is trained."""
