"""What the benchmarks of speed share: models, engines in processes of their own, turns, tables."""
