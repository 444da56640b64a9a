"""Training SyntheOcc: the step, its loss, and the job around it."""
