"""The engine on one CUDA device: what it measures, its peers, its report."""
