"""`perceptrail evaluate`: a stored run on the untouched test split, once."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("evaluate")
