"""Fine-tuning, evaluation and calibration, on the same tasks and engine as a job's."""
