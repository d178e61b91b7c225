"""Long Range Arena (arXiv 2011.04006): its five tasks with any target, or a dense control.

The files:

    listops     expressions: generator, value, files
    texts       reviews and pairs of papers as bytes
    images      CIFAR-10 and Pathfinder as grey values
    examples    ids and labels of a task, as the models read them
    presets     sizes of models and trainings, published and small
    models      the model of a task, from `effconv new`; two texts encoded apart
    training    a training on the engine of `effconv finetune`, and one look at the test examples
"""
