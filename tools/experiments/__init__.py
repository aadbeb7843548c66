"""The experiments of the Net2Net paper, repeated with the public commands; ``tools/run_experiments.py`` runs them."""
