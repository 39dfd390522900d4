"""`perceptrail lr_find`: a learning rate to begin with."""

from perceptrail.commands import run

if __name__ == "__main__":
    run("lr_find")
