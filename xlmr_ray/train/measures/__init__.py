"""How good a task's answers on labelled rows are. scikit-learn computes what it has."""
