"""The reference models: training, what they must be able to do, ablation."""
