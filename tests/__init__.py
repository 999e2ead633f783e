"""The tests. A package, so that one of this name that another project installs, as torch-fidelity does, does not hide it."""
