"""Training in the suite: recipes, examples, losses and the loop that all models share."""
