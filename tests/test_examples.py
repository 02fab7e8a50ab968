"""Each example runs, and shows what it says it shows."""

import math
import re
import runpy
import tempfile
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# Scripts that mark what importance sampling adds to them.
FITTED = ["mnist_cnn", "text_embedding", "two_inputs_two_outputs", "tabular_regression"]
LOOPS = ["custom_loop_two_outputs", "custom_loop_sequences"]


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
        "stream",
        *FITTED,
        *LOOPS,
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
@pytest.mark.every(3)
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


@pytest.mark.soak
def test_a_stream_is_learnt_where_it_is_hard(capsys):
    accuracy = main_of("stream")(steps=300)
    assert accuracy["presampled"] > accuracy["uniform"]
    assert "300 batches of 32 drawn, 28800 samples scored" in capsys.readouterr().out


# --- scripts that mark what was added ---


def without_additions(script):
    """The script that the marks tell of: what was added is left out, and what it replaced comes back."""
    kept = "".join(line for line in script.splitlines(keepends=True) if not line.endswith("# added\n"))
    return re.sub(r"(?m)^( *)# was: ", r"\1", kept)


def run(name, tmp_path, *changes):
    """Run a marked example, changed by functions of its text; returns its names."""
    script = (EXAMPLES / f"{name}.py").read_text()
    for change in changes:
        script = change(script)
    path = tmp_path / f"{name}.py"
    path.write_text(script)
    return runpy.run_path(str(path), run_name="__main__")


def for_one_epoch(script):
    changed, count = re.subn(r"(?m)(epochs=|^LENGTH, EPOCHS = 20, |^EPOCHS = )\d+", r"\g<1>1", script)
    assert count == 1
    return changed


def check_feedback(names, epochs):
    """The losses of every step came back, and every sample was among them."""
    summary = names["sampler"].summary()
    assert summary["updates"] == epochs * math.ceil(len(names["sampler"]) / 32)
    assert summary["seen"] == len(names["sampler"])


def check_printed(names, capsys):
    """What a fitted example prints is its history; returns the last epoch of that."""
    printed = capsys.readouterr().out.strip()
    last = {name: values[-1] for name, values in names["history"].history.items()}
    assert printed == "last epoch: " + ", ".join(f"{name} {value:.3f}" for name, value in last.items())
    return last


@pytest.mark.parametrize("name", FITTED)
def test_two_lines_two_imports_and_the_sampler_are_added(name):
    script = (EXAMPLES / f"{name}.py").read_text()
    added = [line.split("  # added")[0].strip() for line in script.splitlines() if line.endswith("# added")]
    begins = ["from pipeline import", "from sampler import", "sampler =", "train = train.apply(", "callbacks=["]
    assert [line[: len(begin)] for line, begin in zip(added, begins, strict=True)] == begins
    assert len(script.splitlines()) <= 60


@pytest.mark.parametrize(
    "name", [FITTED[0], LOOPS[0], *(pytest.param(name, marks=pytest.mark.soak) for name in FITTED[1:] + LOOPS[1:])]
)
def test_the_script_without_the_additions_runs(name, tmp_path, capsys):
    names = run(name, tmp_path, without_additions, for_one_epoch)
    assert not {"sampler", "ImportanceSampler", "LossFeedback", "feed_back", "weighted_mean"} & set(names)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert "sampling" not in printed


def test_a_convolutional_network_is_trained(tmp_path, capsys):
    names = run("mnist_cnn", tmp_path)
    check_feedback(names, epochs=5)
    last = check_printed(names, capsys)
    assert last["val_accuracy"] > 0.9
    assert last["sampling/gain"] > 1.05


def test_a_text_classifier_is_trained_and_padding_does_not_count(tmp_path, capsys):
    names = run("text_embedding", tmp_path)
    check_feedback(names, epochs=6)
    last = check_printed(names, capsys)
    assert last["val_accuracy"] > 0.97
    assert last["sampling/gain"] > 2.0

    model, (x, _) = names["model"], names["texts"](64, np.random.default_rng(2))
    assert (x == 0).any()
    before = model(x).numpy()
    vectors = model.layers[0].embeddings
    vectors.assign(vectors + 10.0 * (np.arange(names["WORDS"]) == 0)[:, None])  # the vector of padding
    np.testing.assert_array_equal(model(x), before)


def test_a_model_of_two_inputs_and_two_outputs_is_trained_and_feeds_back_the_weighted_sum(tmp_path, capsys):
    import keras
    import tensorflow as tf

    from pipeline import LossFeedback, importance_sampling
    from sampler import ImportanceSampler

    names = run("two_inputs_two_outputs", tmp_path)
    check_feedback(names, epochs=8)
    last = check_printed(names, capsys)
    assert last["val_digit_accuracy"] > 0.9
    assert last["val_total_mae"] < 0.2  # 0.33 by guessing
    assert last["sampling/gain"] > 1.05

    model, data = names["model"], names["data"]
    dataset = names["dataset"](data.x_test, data.y_test, np.random.default_rng(2))
    ((x, y),) = dataset.batch(len(dataset))
    outputs = model(x)
    digit = keras.losses.sparse_categorical_crossentropy(y["digit"], outputs["digit"])
    total = tf.square(tf.cast(y["total"], tf.float32) - outputs["total"])[:, 0]
    model.optimizer.learning_rate = 0.0
    sampler = ImportanceSampler(len(dataset), keep_losses=True, seed=0)
    train = dataset.apply(importance_sampling(sampler, batch_size=32))
    model.fit(train, callbacks=[LossFeedback(model, sampler)], shuffle=False, verbose=0)
    np.testing.assert_allclose(sampler.losses(), digit + 5.0 * total, rtol=1e-3, atol=1e-5)


def test_a_regression_on_a_table_is_trained(tmp_path, capsys):
    names = run("tabular_regression", tmp_path)
    check_feedback(names, epochs=6)
    last = check_printed(names, capsys)
    assert last["val_mae"] < 0.1 * np.std(names["y_train"])
    assert last["sampling/gain"] > 1.05


def test_a_loop_with_two_outputs_feeds_back_the_sum_of_their_losses(tmp_path, capsys):
    names = run("custom_loop_two_outputs", tmp_path)
    check_feedback(names, epochs=names["EPOCHS"])
    assert f"test accuracy {names['accuracy']:.3f}" in capsys.readouterr().out
    assert names["accuracy"] > 0.88

    names["optimizer"].learning_rate = 0.0
    for x, y, sampling in names["train"].take(3):
        names["train_step"](x, y, sampling)
        outputs = names["model"](x)
        losses = names["digit_loss"](y["digit"], outputs["digit"]) + 10 * names["ink_loss"](y["ink"], outputs["ink"])
        priorities = names["sampler"].priorities()[sampling["index"]]
        np.testing.assert_allclose(priorities, losses, rtol=1e-3, atol=1e-6)


def test_under_xla_the_loop_is_as_the_example_says(tmp_path):
    def with_xla(script):
        replaced = [
            ("@tf.function\n", "@tf.function(jit_compile=True)\n"),
            ("feed_back(sampler, sampling, losses)", "return losses"),
            ("for batch in train:", "for x, y, sampling in train:"),
            (
                "train_step(*batch)",
                'sampler.update(sampling["index"], train_step(x, y, sampling), step=sampling["step"])',
            ),
        ]
        for old, new in replaced:
            assert script.count(old) == 1
            script = script.replace(old, new)
        return script

    names = run("custom_loop_two_outputs", tmp_path, for_one_epoch, with_xla)
    check_feedback(names, epochs=1)


def test_a_loop_over_sequences_feeds_back_the_mean_over_steps_that_are_no_padding(tmp_path, capsys):
    import keras

    names = run("custom_loop_sequences", tmp_path)
    check_feedback(names, epochs=names["EPOCHS"])
    x, y, right = names["x_test"], names["y_test"], names["right"]
    assert f"test accuracy of steps {right[x != 0].mean():.3f}" in capsys.readouterr().out
    assert right[x != 0].mean() > 0.95

    names["optimizer"].learning_rate = 0.0
    for x, y, sampling in names["train"].take(3):
        names["train_step"](x, y, sampling)
        steps = keras.losses.sparse_categorical_crossentropy(y, names["model"](x).numpy(), from_logits=True)
        losses = [np.mean(row[tokens != 0]) for row, tokens in zip(steps.numpy(), x.numpy(), strict=True)]
        priorities = names["sampler"].priorities()[sampling["index"]]
        np.testing.assert_allclose(priorities, losses, rtol=1e-3, atol=1e-6)
