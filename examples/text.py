"""Text: strings are drawn as they are and arrive as ``tf.string``; a layer inside the model splits and numbers them.

The sentences praise or blame. Most say it plainly; one in ten turns it round ("not ..."), and these are what the
sampler comes to draw more often than others.
"""

import keras
import numpy as np

from pipeline import LossFeedback, importance_dataset
from sampler import ImportanceSampler

PRAISE, BLAME = ["good", "fine", "lovely", "superb"], ["bad", "poor", "awful", "dull"]
THINGS = ["film", "book", "song", "play", "meal", "view"]


def sentences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``count`` sentences, whether they praise (1) or blame (0), and whether they turn it round."""
    rng = np.random.default_rng(seed)
    praises, turned = rng.integers(0, 2, count), rng.random(count) < 0.1
    texts = []
    for praise, turn in zip(praises, turned, strict=True):
        words = PRAISE if praise != turn else BLAME
        texts.append(f"the {rng.choice(THINGS)} is {'not ' if turn else ''}{rng.choice(words)}")
    return np.array(texts, object), praises, turned


def main(epochs: int = 2, batch_size: int = 32) -> dict[str, float]:
    """Train a small classifier; returns the test accuracy, and how often a turned sentence is drawn beside others."""
    texts, labels, turned = sentences(2000, seed=0)
    keras.utils.set_random_seed(0)
    split = keras.layers.TextVectorization(max_tokens=100, ngrams=2, output_mode="multi_hot")
    split.adapt(texts)
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(split(inputs)))
    model.compile(keras.optimizers.Adam(0.03), loss="binary_crossentropy", metrics=["accuracy"])

    sampler = ImportanceSampler(len(texts), smoothing=0.5, seed=0)
    train = importance_dataset((texts, labels), sampler, batch_size)
    model.fit(train, epochs=epochs, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)

    test_texts, test_labels, _ = sentences(500, seed=1)
    test = keras.ops.convert_to_tensor(test_texts.tolist(), dtype="string")
    accuracy = model.evaluate(test, test_labels, batch_size=500, verbose=0)[1]
    priorities = sampler.priorities()
    ratio = float(priorities[turned].mean() / priorities[~turned].mean())
    print(f"test accuracy {accuracy:.3f}; a turned sentence has {ratio:.1f} times the priority of another")
    return {"accuracy": accuracy, "ratio": ratio}


if __name__ == "__main__":
    main()
