"""What training, ranking and preprocessing cost, as ratios to the bare limit in one run. `make bench` runs
all."""
