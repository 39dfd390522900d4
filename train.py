"""`perceptrail train`: train one network, or many (-m), and record what came out."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("train")
