"""`perceptrail export`: a stored run's network for other programs."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("export")
