"""`perceptrail predict`: image files or rows of a table, told by a stored run."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("predict")
