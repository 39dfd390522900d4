"""`python -m perceptrail` is `perceptrail`."""

from perceptrail.commands import main

if __name__ == "__main__":
    main()
