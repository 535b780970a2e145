"""Reports as one page that asks for nothing from anywhere: what those of runs and of trainings are made of."""
