"""CLIP training: recipes, data, model, loop, checkpoints and exports."""
