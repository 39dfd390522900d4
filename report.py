"""`perceptrail report`: the page that tells all results, from what is stored."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("report")
