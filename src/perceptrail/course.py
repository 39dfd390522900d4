"""The course in its order: what each study is about, before the study itself has the word."""

from typing import NamedTuple


class Section(NamedTuple):
    """A section of the page: the study that it tells, its title, the idea that is studied."""

    study: str
    title: str
    idea: str


COURSE = (
    Section(
        "perceptron",
        "One neuron",
        "A nerve cell gathers signals from thousands of others, gives each its weight, and fires "
        "once their sum is large enough; a brain has some 86 billion of them. The artificial "
        "neuron keeps the arithmetic alone: inputs times weights, plus a bias, through an "
        "activation. Weights and bias are what it learns.",
    ),
    Section(
        "xor",
        "A problem that one neuron cannot solve",
        "Exclusive or is true when exactly one of two inputs is. It is the smallest problem that "
        "no straight line divides, and the reason why networks have layers.",
    ),
    Section(
        "activations",
        "Activation functions",
        "Between its layers a network needs something that is not linear, or all of them together "
        "would be no more than one. A step would do, but its slope is zero wherever it has one, "
        "and a slope is all that gradient descent goes by. Hence the smooth ones: sigmoid between "
        "0 and 1, tanh centred on 0, ReLU that lets the positive pass, softmax for a choice among "
        "classes.",
    ),
    Section(
        "approximation",
        "Any function, in principle",
        "Layers of simple units can be stacked into a function of any shape. The theorem promises "
        "that good weights exist; it says neither how many units they take nor that training will "
        "find them.",
    ),
    Section(
        "backpropagation",
        "How a network learns",
        "The error is known at the output. The chain rule carries it back through the layers, and "
        "tells each weight its share, by which it is then moved. The same few lines of algebra are "
        "inside every library.",
    ),
    Section(
        "architectures",
        "Shallow, deep, wide, narrow",
        "One or two hidden layers are said to do for simple patterns, more for complex ones; width "
        "buys capacity, depth a hierarchy of features. A fair comparison gives each shape the same "
        "number of parameters.",
    ),
    Section(
        "regularization",
        "Learning without learning by heart",
        "A network large enough to fit the training data can fit its accidents, too. Dropout "
        "silences units at random while training; early stopping ends when the validation loss no "
        "longer falls; penalties and bounds keep weights small.",
    ),
    Section(
        "hyperparameters",
        "What has to be chosen",
        "Learning rate, depth, width, batch size, activation, dropout, optimizer: none of them is "
        "learned. Each comes with a rule of thumb, and each rule can be looked at alone, the "
        "others held at their defaults.",
    ),
    Section(
        "when_not",
        "When something else is better",
        "Networks are at home with images, text, sequences, much data and tangled patterns. With "
        "small tables, or where a person has to follow the reasoning, trees and linear models are "
        "hard to beat.",
    ),
    Section(
        "digit_recogniser",
        "Project: a digit recogniser",
        "Everything so far put to work on the classic task: handwritten digits of 28 by 28 pixels, "
        "ten classes, and a test set that is looked at once.",
    ),
    Section(
        "tuner",
        "Project: a tuner",
        "Choosing by hand ends somewhere. A search proposes configurations, gives up early on poor "
        "ones, and learns from the rest which choices matter.",
    ),
)
