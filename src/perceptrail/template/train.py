"""`perceptrail train`: this project's network, or with -m many of them."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("train")
