"""Search for the best setting: search space, trials, final comparison."""
