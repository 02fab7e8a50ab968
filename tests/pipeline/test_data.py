"""The named data sets: what they hold, that they never change, and what a wrong name or file is told."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from pipeline import data as module
from pipeline.data import Data, load_data

ELSEWHERE = {"countries"}  # in test_places.py: it takes seconds to read, once a process


@pytest.mark.parametrize("name", [name for name in module.NAMED if name not in ELSEWHERE])
def test_a_task_is_the_same_in_every_run(name):
    first, second = load_data(name), load_data(name)  # nothing else goes in
    for part in ("x", "y", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))


@pytest.mark.parametrize(
    ("name", "shape", "samples", "tests", "classes"),
    [
        ("digits", (8, 8, 1), 1347, 450, 10),
        ("digits-longtail", (8, 8, 1), 280, 450, 10),
        ("digits-noisy", (8, 8, 1), 1347, 450, 10),
        ("digits-pixels", (64, 1), 1347, 450, 10),
        ("checker", (8,), 50_000, 20_000, 2),
        ("peaks", (2,), 20_000, 10_000, None),
        ("heavy-rows", (8,), 20_000, 10_000, None),
        ("heavy-linear", (20,), 5_000, 5_000, None),
        ("teacher", (20,), 50_000, 10_000, 5),
        ("gaussians", (8,), 20_000, 10_000, 4),
        ("clusters", (10,), 20_000, 10_000, 2),
    ],
)
def test_shapes_and_types(name, shape, samples, tests, classes):
    data = load_data(name)
    assert (len(data), len(data.x_test)) == (samples, tests)
    assert data.x.shape == (samples, *shape)
    assert data.x_test.shape == (tests, *shape)
    assert data.x.dtype == data.x_test.dtype == np.float32
    assert data.num_classes == classes
    target = ((), np.int64) if classes else ((1,), np.float32)
    assert (data.y.shape[1:], data.y.dtype) == target
    assert (data.y_test.shape, data.y_test.dtype) == ((tests, *target[0]), target[1])


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_split_once_with_every_class_in_the_test():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    np.testing.assert_array_equal(np.bincount(data.y_test), [45] * 10)
    assert data.x.min() == 0.0
    assert data.x.max() == 1.0
    # Together they are the 1,797 images with their labels, each once.
    ours = _rows(np.concatenate([data.x, data.x_test]), np.concatenate([data.y, data.y_test]))
    theirs = load_digits()
    assert ours == _rows((theirs.images / 16).astype(np.float32), theirs.target.astype(np.int64))


def test_longtail_falls_geometrically_from_fifty_to_one():
    data, balanced = load_data("digits-longtail"), load_data("digits")
    counts = np.bincount(data.y)
    np.testing.assert_array_equal(counts, np.round(100 * 50.0 ** (-np.arange(10) / 9)))
    assert counts[0] == 50 * counts[9]
    np.testing.assert_array_equal(data.x_test, balanced.x_test)
    assert set(_rows(data.x, data.y)) <= set(_rows(balanced.x, balanced.y))


def test_a_fifth_of_the_labels_is_wrong_and_none_of_the_test():
    noisy, clean = load_data("digits-noisy"), load_data("digits")
    assert (noisy.y != clean.y).sum() == round(0.2 * 1347)
    assert set(np.unique(noisy.y)) == set(range(10))
    for part in ("x", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(noisy, part), getattr(clean, part))


def test_pixels_come_row_after_row():
    pixels, images = load_data("digits-pixels"), load_data("digits")
    np.testing.assert_array_equal(pixels.x[:, 8 * 3 + 5], images.x[:, 3, 5])
    np.testing.assert_array_equal(pixels.y, images.y)


def _rows(x: np.ndarray, y: np.ndarray) -> list[bytes]:
    return sorted(image.tobytes() + label.tobytes() for image, label in zip(x, y, strict=True))


# --- npz ------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return f"npz:{tmp_path / 'mine.npz'}"

    return write


def test_npz_without_a_test_set_holds_a_fifth_out(save):
    x = np.arange(50, dtype=np.float64).reshape(50, 1)
    name = save(x=x, y=np.arange(50) % 3)
    data = load_data(name)
    assert (len(data), len(data.x_test), data.num_classes, data.x.dtype) == (40, 10, 3, np.float32)
    together = np.concatenate([data.x, data.x_test]).ravel()
    np.testing.assert_array_equal(np.sort(together), x.ravel())
    np.testing.assert_array_equal(together % 3, np.concatenate([data.y, data.y_test]))
    np.testing.assert_array_equal(load_data(name).x_test, data.x_test)


def test_npz_with_a_test_set_keeps_it(save):
    x, y = np.zeros((6, 4), np.float32), np.array([0, 1, 0, 1, 0, 1], np.int32)
    data = load_data(save(x=x, y=y, x_test=np.ones((2, 4)), y_test=np.array([2, 0])))
    assert (len(data), data.num_classes) == (6, 3)
    np.testing.assert_array_equal(data.x_test, np.ones((2, 4)))
    np.testing.assert_array_equal(data.y_test, [2, 0])


@pytest.mark.parametrize("shape", [(10,), (10, 1), (10, 3)])
def test_npz_with_real_numbers_is_regression(save, shape):
    y = np.linspace(0, 1, np.prod(shape)).reshape(shape)
    data = load_data(save(x=np.arange(10.0), y=y))
    assert data.num_classes is None
    assert data.x.shape == (8, 1)
    assert data.y.shape == (8, shape[1] if len(shape) > 1 else 1)
    assert data.y.dtype == np.float32


def test_npz_pixels_are_scaled_and_other_integers_are_not(save):
    y = np.array([0, 1] * 5)
    pixels = load_data(save(x=np.full((10, 2, 2), 255, np.uint8), y=y))
    counts = load_data(save(x=np.full((10, 2), 255, np.int32), y=y))
    assert pixels.x.max() == 1.0
    assert counts.x.max() == 255.0


def test_npz_booleans_and_columns_are_classes(save):
    data = load_data(save(x=np.zeros((10, 2)), y=np.array([[True], [False]] * 5)))
    assert (data.num_classes, data.y.shape, data.y.dtype) == (2, (8,), np.int64)


ZEROS = np.zeros((10, 2))
LABELS = np.array([0, 1] * 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ZEROS}, r"holds the keys \['x'\]; needed are x and y"),
        ({"x": ZEROS, "y": LABELS, "x_test": ZEROS}, "both or neither"),
        ({"x": ZEROS, "y": LABELS[:9]}, "x has 10 samples, y 9"),
        ({"x": ZEROS, "y": np.eye(10, 2, dtype=int)}, r"np.argmax\(y, axis=1\)"),
        ({"x": ZEROS, "y": LABELS - 1}, r"classes 0..K-1, got -1..0 in 10 samples"),
        ({"x": ZEROS, "y": LABELS * 1000}, "got 0..1000 in 10 samples"),
        ({"x": ZEROS, "y": np.array(["a", "b"] * 5)}, r"y must be \(N,\) or \(N, D\) numbers"),
        ({"x": ZEROS.astype("U"), "y": LABELS}, r"x must be \(N, ...\) numbers"),
        ({"x": ZEROS[:0], "y": LABELS[:0]}, "with N at least 1"),
        ({"x": ZEROS[:1], "y": LABELS[:1]}, "at least 2 are needed"),
        ({"x": np.array([[0.0], [np.nan]] * 5), "y": LABELS}, "in 5 of 10 samples, the first at index 1"),
        ({"x": ZEROS, "y": np.array([np.inf] * 10)}, "y holds values that are not finite"),
        ({"x": ZEROS, "y": LABELS, "x_test": ZEROS[:, :1], "y_test": LABELS}, "training and test"),
        ({"x": ZEROS, "y": LABELS, "x_test": ZEROS, "y_test": LABELS * 1.0}, "training and test"),
    ],
)
def test_npz_contents_that_make_no_task_are_refused(save, arrays, message):
    with pytest.raises(ValueError, match=message):
        load_data(save(**arrays))


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_npz_with_a_pickle_is_refused_and_nothing_of_it_runs(save, tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")] * 10, object)
    with pytest.raises(ValueError, match=r"not a usable \.npz file of plain arrays"):
        load_data(save(x=trap, y=LABELS))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"not an archive at all"])
def test_npz_that_is_damaged_is_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz' is not a usable \.npz file"):
        load_data(f"npz:{tmp_path / 'bad.npz'}")


def test_npz_that_is_a_single_array_is_refused(tmp_path):
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, ZEROS)
    with pytest.raises(ValueError, match="it holds a single array"):
        load_data(f"npz:{tmp_path / 'one.npz'}")


def test_a_missing_npz_names_its_neighbour(save, tmp_path):
    save(x=ZEROS, y=LABELS)
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*mine\.npz'\?"):
        load_data(f"npz:{tmp_path / 'mien.npz'}")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_data(f"npz:{tmp_path / 'nowhere' / 'mine.npz'}")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown data set 'digit'. Did you mean 'digits'?"),
        ("keras:mnits", "unknown Keras data set 'mnits'. Did you mean 'mnist'?"),
        ("mnist", "Did you mean 'keras:mnist'?"),
        (
            "npy:mine.npy",
            "There are: digits, digits-longtail, digits-noisy, digits-pixels, checker, peaks,",
        ),
        ("", "There are: digits"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_and_all(name, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # what it says is compared below
        load_data(name)
    assert message in str(error.value)


# --- keras ----------------------------------------------------------------------------------------
# Keras reads its own cache: files laid out as it keeps them, found in a folder of the test's. Only the
# comparison with the hash of the real download is left out, since a small file cannot have it; and any
# download fails.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from keras.src.backend import config
    from keras.src.utils import file_utils

    def no_download(url, *rest):
        raise urllib.error.URLError(f"no network for {url}")

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(file_utils, "validate_file", lambda *rest, **options: True)
    monkeypatch.setattr(file_utils, "urlretrieve", no_download)
    (tmp_path / "datasets").mkdir()
    return tmp_path / "datasets"


GENERATOR = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    values = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    values.flat[0] = 255
    return values


def assert_images(data: Data, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> None:
    assert data.x.dtype == data.x_test.dtype == np.float32
    assert data.x.flags.c_contiguous
    np.testing.assert_allclose(data.x, x / 255.0, atol=1e-7)
    np.testing.assert_allclose(data.x_test, x_test / 255.0, atol=1e-7)
    np.testing.assert_array_equal(data.y, y)
    np.testing.assert_array_equal(data.y_test, y_test)
    assert data.y.dtype == np.int64


def test_keras_mnist(cache):
    x, x_test, y, y_test = (
        pixels(5, 28, 28),
        pixels(3, 28, 28),
        np.uint8([0, 1, 2, 3, 9]),
        np.uint8([4, 5, 6]),
    )
    np.savez(cache / "mnist.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    data = load_data("keras:mnist")
    assert (data.name, data.num_classes, data.x.shape) == ("keras:mnist", 10, (5, 28, 28, 1))
    assert_images(data, x[..., None], y, x_test[..., None], y_test)


def test_keras_fashion_mnist(cache):
    (cache / "fashion-mnist").mkdir()
    x, x_test, y, y_test = (
        pixels(5, 28, 28),
        pixels(3, 28, 28),
        np.uint8([0, 1, 2, 3, 9]),
        np.uint8([4, 5, 6]),
    )
    for prefix, images, labels in (("train", x, y), ("t10k", x_test, y_test)):
        for kind, values, header in (("images-idx3", images, 16), ("labels-idx1", labels, 8)):
            with gzip.open(cache / "fashion-mnist" / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + values.tobytes())
    data = load_data("keras:fashion_mnist")
    assert (data.num_classes, data.x.shape) == (10, (5, 28, 28, 1))
    assert_images(data, x[..., None], y, x_test[..., None], y_test)


def cifar(cache: Path, folder: str, batches: dict[str, tuple[np.ndarray, np.ndarray]], key: bytes) -> None:
    """The archive as Keras downloads it: pickled dicts of rows (B, 3072) and lists of labels."""
    with tarfile.open(cache / f"{folder}-target_archive", "w:gz") as archive:
        for name, (images, labels) in batches.items():
            rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = pickle.dumps({b"data": rows, key: labels.tolist()})
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_keras_cifar100(cache):
    x, x_test, y, y_test = pixels(5, 32, 32, 3), pixels(3, 32, 32, 3), np.arange(95, 100), np.arange(3)
    cifar(cache, "cifar-100-python", {"train": (x, y), "test": (x_test, y_test)}, b"fine_labels")
    data = load_data("keras:cifar100")
    assert data.num_classes == 100
    assert_images(data, x, y, x_test, y_test)


def test_keras_cifar10(cache):
    # Keras lays each batch into 10,000 rows of 50,000; a batch of one image fills all of its own.
    x, y, x_test, y_test = pixels(5, 32, 32, 3), np.array([9, 0, 1, 2, 3]), pixels(3, 32, 32, 3), np.arange(3)
    batches = {f"data_batch_{i + 1}": (x[i : i + 1], y[i : i + 1]) for i in range(5)}
    cifar(cache, "cifar-10-batches-py", {**batches, "test_batch": (x_test, y_test)}, b"labels")
    data = load_data("keras:cifar10")
    assert (len(data), data.num_classes) == (50_000, 10)
    np.testing.assert_array_equal(data.y[::10_000], y)
    np.testing.assert_allclose(data.x[::10_000], x / 255.0, atol=1e-7)
    np.testing.assert_array_equal(data.y_test, y_test)


def test_keras_imdb_is_padded_in_front_and_cut_to_its_end(cache):
    short, long = [5, 6, 20_000], list(range(10, 510))
    reviews = np.empty(2, object)
    reviews[:] = [short, long]
    np.savez(cache / "imdb.npz", x_train=reviews, y_train=[0, 1], x_test=reviews[:1], y_test=[0])
    data = load_data("keras:imdb")
    assert (data.x.shape, data.x.dtype, data.num_classes) == ((2, 200), np.int32, 2)
    # Keras shuffles, shifts words by 3, begins with 1 and writes 2 for words beyond the 10,000.
    row = {int(label): tokens for tokens, label in zip(data.x, data.y, strict=True)}
    np.testing.assert_array_equal(row[0], [0] * 196 + [1, 8, 9, 2])
    np.testing.assert_array_equal(row[1], np.array(long[-200:]) + 3)
    np.testing.assert_array_equal(data.x_test[0], row[0])


@pytest.mark.usefixtures("cache")
@pytest.mark.fault(36)
def test_keras_without_a_network_says_what_to_do(capsys):
    with pytest.raises(ConnectionError, match=r"copy the file into ~/\.keras/datasets"):
        load_data("keras:mnist")
    capsys.readouterr()  # Keras's "Downloading data from"


def test_keras_trouble_of_another_kind_is_not_called_a_missing_network(cache):
    np.savez(cache / "mnist.npz", x_train=pixels(5, 28, 28))
    with pytest.raises(KeyError, match="y_train"):
        load_data("keras:mnist")
