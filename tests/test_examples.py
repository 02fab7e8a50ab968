"""Each example runs, and shows what it says it shows."""

import runpy
import tempfile
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    """The ``main`` of an example, imported as a program would be but not run."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)["main"]


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "batch_loss",
        "per_sample_losses",
        "imbalanced_classes",
        "importance_fit",
        "importance_custom_loop",
        "tfrecord_images",
        "hugging_face",
        "tfds_source",
        "text",
    }
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}.py`" in listed for name in names)


def test_batch_loss_falls(capsys):
    main = main_of("batch_loss")
    assert main(steps=150) < main(steps=1)
    assert "loss of the last batch" in capsys.readouterr().out


def test_per_sample_losses_have_the_same_gradient_and_the_cost_is_printed(capsys):
    difference, ratio = main_of("per_sample_losses")(rounds=5)
    assert difference < 1e-6
    printed = capsys.readouterr().out
    assert f"{ratio:.3f}" in printed
    assert "shape (256,)" in printed


def test_the_wrong_forms_are_wrong_as_the_example_says():
    import keras

    y, logits = np.array([0, 1]), np.array([[0.0, 3.0], [0.0, 3.0]], "float32")
    loss = keras.losses.SparseCategoricalCrossentropy()
    assert np.shape(loss(y, logits)) == ()
    with pytest.raises(TypeError):
        loss(y, logits, from_logits=True)


def test_weights_help_the_rare_classes(capsys):
    accuracy = main_of("imbalanced_classes")(steps=400)
    assert accuracy["weighted"].mean() > accuracy["plain"].mean()
    assert "focal" in capsys.readouterr().out


def test_focal_loss_is_the_formula():
    example = runpy.run_path(str(EXAMPLES / "imbalanced_classes.py"), run_name="imbalanced_classes")
    logits = np.array([[0.0, 2.0, -1.0], [1.0, 1.0, 1.0]], "float32")
    right = np.exp(logits[[0, 1], [1, 2]]) / np.exp(logits).sum(axis=1)
    expected = -((1 - right) ** 2) * np.log(right)
    np.testing.assert_allclose(example["focal"](np.array([1, 2]), logits), expected, rtol=1e-5)


def test_importance_sampling_in_fit(capsys):
    summary = main_of("importance_fit")(epochs=2)
    assert summary["seen"] == 1347
    assert "hardest samples" in capsys.readouterr().out


def test_importance_sampling_in_a_custom_loop(capsys):
    main = main_of("importance_custom_loop")
    assert main(epochs=3) < main(epochs=1)
    assert "largest weight" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tfrecord_images", "hugging_face", "tfds_source"])
def test_other_sources_of_images_train(name, capsys):
    assert main_of(name)(epochs=2) > 0.6  # a tenth by chance
    assert "test accuracy after 2 epochs" in capsys.readouterr().out


def test_augmented_images_are_others_each_time_with_the_same_label():
    import tensorflow as tf

    example = runpy.run_path(str(EXAMPLES / "tfrecord_images.py"), run_name="tfrecord_images")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/one.tfrecord"
        example["write_records"](path, np.random.default_rng(0).random((1, 8, 8, 1)), np.array([7]))
        parsed = [example["parse_and_augment"](record) for record in tf.data.TFRecordDataset(path).repeat(20)]
    assert {int(label) for _, label in parsed} == {7}
    assert len({image.numpy().tobytes() for image, _ in parsed}) > 3


def test_text_is_learnt_and_the_harder_sentences_have_higher_priorities(capsys):
    result = main_of("text")(epochs=2)
    assert result["accuracy"] > 0.9
    assert result["ratio"] > 1.5
    assert "times the priority" in capsys.readouterr().out
