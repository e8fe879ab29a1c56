"""Tasks: found by name, read from files that strangers made, and learnt by their hosts."""

import gzip
import itertools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commands import finish_forked, read_whole, refused
from sapflow.errors import InputError
from sapflow.growth.blueprints import blueprints_for
from sapflow.growth.host import ConvHost, TransformerHost, slots_of
from sapflow.telemetry.events import EpochCompleted, RunCompleted, RunStarted, SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement, SeedStage
from sapflow.training.tasks import characters, cifar10, mnist, task_named, task_names
from sapflow.training.tasks.files import read_at_most
from sapflow.training.tasks.task import percent_correct
from sapflow.training.trainer import RunPlan, run

BUNDLED = ["characters", "digits-cnn", "digits-mlp"]
OF_FILES = ["cifar10-cnn", "mnist-cnn", "mnist-mlp"]
RECORD = 3073
IDX = {
    "train-images-idx3-ubyte": 96, "train-labels-idx1-ubyte": 96, "t10k-images-idx3-ubyte": 40,
    "t10k-labels-idx1-ubyte": 40,
}  # fmt: skip


def labels_and_images(count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Noise that is the brighter the larger the label: something to learn."""
    generator = np.random.default_rng(count)
    labels = generator.integers(0, 10, count, dtype=np.uint8)
    images = generator.integers(0, 50, (count, *shape), dtype=np.uint8)
    images += 20 * labels.reshape(-1, *(1 for _ in shape))
    return labels, images


def idx(values: np.ndarray) -> bytes:
    """By the format's own account: two zeros, type, dimensions, sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def mnist_dir(tmp_path) -> Path:
    for name, count in IDX.items():
        labels, images = labels_and_images(count, (28, 28))
        (tmp_path / name).write_bytes(idx(labels if "labels" in name else images))
    return tmp_path


@pytest.fixture
def cifar_dir(tmp_path) -> Path:
    for order, name in enumerate((*cifar10.TRAIN, *cifar10.TEST)):
        labels, images = labels_and_images(20 + order, (3, 32, 32))
        records = [bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True)]
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


class TestNames:
    def test_all_tasks_are_found_by_theirs(self, tmp_path):
        assert task_names() == sorted((*BUNDLED, *OF_FILES))
        assert [task_named(name).name for name in BUNDLED] == BUNDLED
        assert [task_named(name, str(tmp_path)).name for name in OF_FILES] == OF_FILES

    @pytest.mark.parametrize("name", ["", "oak", "digits", "digits-rnn", "task", "files", "..", "mnist", "os"])
    def test_those_that_are_none_are_answered_with_those_that_there_are(self, name):
        with pytest.raises(InputError, match="characters, cifar10-cnn, digits-cnn, digits-mlp, mnist-cnn, mnist-mlp"):
            task_named(name)

    def test_a_data_directory_is_asked_for_where_it_is_read_and_nowhere_else(self, tmp_path):
        with pytest.raises(InputError, match="--data DIR, with the IDX files train-images"):
            RunPlan(task="mnist-cnn").check()
        with pytest.raises(InputError, match=r"attic: there is no such directory.*data_batch_1\.bin"):
            RunPlan(task="cifar10-cnn", data_dir=str(tmp_path / "attic")).check()
        with pytest.raises(InputError, match="brings its own data"):
            RunPlan(task="digits-mlp", data_dir=str(tmp_path)).check()

    def test_a_task_is_found_without_what_others_need(self):
        """In a process of its own, where nothing is imported yet."""
        script = (
            "import sys\n"
            "from sapflow.training.tasks import task_named\n"
            "task_named('characters').load()\n"
            "loaded = [name for name in sys.modules if name.startswith(('sklearn', 'sapflow.training.tasks.'))]\n"
            "print(sorted(loaded))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['sapflow.training.tasks.characters', 'sapflow.training.tasks.task']"


TASK = """
import torch
from sapflow.growth.host import DenseHost
from sapflow.training.tasks.task import Data, FileTask, Task

def load():
    return Data(torch.zeros(4, 3), torch.zeros(4).long(), torch.zeros(2, 3), torch.zeros(2).long())

PLAIN = Task("whatever", load, lambda: DenseHost(3, 2))
OF_FILES = FileTask("whatever", "a file", lambda directory: Task(str(directory), load, lambda: DenseHost(3, 2)))
NONE = 42
"""
counter = itertools.count()


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Leave behind what an installer does: a module, and the entry points that name what is in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(source: str, **points: str) -> str:
        name = f"tasks_{next(counter)}"
        (tmp_path / f"{name}.py").write_text(source)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point.replace('_', '-')} = {name}{of}" for point, of in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[sapflow.tasks]", *lines, ""]))
        return name

    return installed


class TestPackages:
    def test_bring_tasks_by_entry_points_under_whose_names_they_go(self, install, tmp_path):
        install(TASK, forest=":PLAIN", timber=":OF_FILES")
        assert task_names()[-2:] == ["forest", "timber"]
        assert task_named("forest").name == "forest"
        assert len(task_named("forest").load().train_inputs) == 4
        assert task_named("timber", str(tmp_path)).name == "timber"
        with pytest.raises(InputError, match="timber reads files: say --data DIR, with a file"):
            task_named("timber")

    def test_that_are_broken_matter_to_those_alone_who_ask_for_them(self, install):
        name = install("raise OSError('rotten\\nto the core')", rotten=":PLAIN")
        other = install(TASK, number=":NONE")
        assert task_named("digits-mlp").name == "digits-mlp"
        with pytest.raises(InputError, match=rf"'rotten' of {name}:PLAIN .*cannot be loaded: OSError: rotten$"):
            task_named("rotten")
        with pytest.raises(InputError, match=rf"'number' of {other}:NONE .*is a int, and no Task"):
            task_named("number")

    def test_that_claim_one_name_are_named(self, install):
        first, second = install(TASK, forest=":PLAIN", digits_mlp=":PLAIN"), install(TASK, forest=":PLAIN")
        with pytest.raises(InputError, match=rf"claimed by {first}:PLAIN \({first}\) and {second}:PLAIN"):
            task_named("forest")
        with pytest.raises(InputError, match=rf"claimed by Sapflow and {first}:PLAIN"):
            task_named("digits-mlp")


class TestCharacters:
    @given(st.text(max_size=60), st.text(max_size=60), st.integers(2, 20))
    def test_known_text_comes_back_and_all_else_is_unknown(self, seen, text, size):
        vocabulary = characters.Vocabulary(seen, size)
        assert len(vocabulary.characters) <= size
        numbers = vocabulary.encode(text)
        assert numbers.dtype == torch.int64
        assert numbers.shape == (len(text),)
        assert ((numbers >= 0) & (numbers < size)).all()
        kept = set(vocabulary.characters[1:])
        assert vocabulary.decode(numbers) == "".join(c if c in kept else characters.UNKNOWN for c in text)

    def test_the_most_frequent_characters_are_kept(self):
        vocabulary = characters.Vocabulary("aaabbbccd", 4)
        assert vocabulary.decode(vocabulary.encode("abcd")) == f"abc{characters.UNKNOWN}"

    def test_the_label_of_a_character_is_the_one_that_follows_it(self):
        data = characters.load_characters()
        for inputs, labels in (
            (data.train_inputs, data.train_labels),
            (data.validation_inputs, data.validation_labels),
        ):
            assert inputs.shape == labels.shape == (len(inputs), 64)
            assert torch.equal(inputs[:, 1:], labels[:, :-1])
            assert inputs.max() < 96

    def test_the_splits_share_no_text(self):
        text, data = characters.reference_text(), characters.load_characters()
        seen, held_out = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
        vocabulary = characters.Vocabulary(seen, 96)
        for part, inputs in ((seen, data.train_inputs), (held_out, data.validation_inputs)):
            as_known = vocabulary.decode(vocabulary.encode(part))
            windows = [vocabulary.decode(window) for window in inputs]
            assert all(window in as_known for window in windows)
            assert as_known.startswith(windows[0])
            assert windows[-1] in as_known[-70:]
        assert len(text) > 200_000
        assert "statement" in text

    def test_a_python_without_the_text_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
        with pytest.raises(InputError, match="characters: this Python comes without"):
            characters.reference_text()


class TestTransformer:
    def test_slots_lie_on_the_stream_and_shorter_texts_will_do(self):
        host = TransformerHost(vocabulary=11, context=16, width=8, heads=2)
        fed = {}
        for slot_id, slot in slots_of(host).items():
            slot.register_forward_pre_hook(lambda _m, args, slot_id=slot_id: fed.update({slot_id: args[0].shape[1:]}))
        assert host(torch.zeros(3, 16, dtype=torch.int64)).shape == (3, 11, 16)
        assert fed == {slot_id: slot.shape for slot_id, slot in slots_of(host).items()}
        assert list(fed) == ["early", "mid", "late"]
        assert host(torch.zeros(3, 5, dtype=torch.int64)).shape == (3, 11, 5)

    @pytest.mark.parametrize("name", [None, *(one.blueprint_id for one in blueprints_for((16, 8)))])
    def test_never_looks_ahead_whatever_grows_in_it(self, name):
        torch.manual_seed(0)
        host = TransformerHost(vocabulary=11, context=16, width=8, heads=2).double().eval()
        if name is not None:
            for slot in slots_of(host).values():
                (chosen,) = (one for one in blueprints_for(slot.shape) if one.blueprint_id == name)
                slot.plant(chosen.build(slot.shape).double(), seed_id="s", blueprint_id=name)
                slot.state.stage = SeedStage.BLENDING
                slot.blend(1.0)
        tokens = torch.randint(11, (2, 16))
        before = host(tokens)
        for t in range(16):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % 11
            after = host(changed)
            torch.testing.assert_close(after[..., :t], before[..., :t], rtol=0, atol=1e-12)
            assert not torch.allclose(after[..., t], before[..., t], rtol=0, atol=1e-6)


class TestIdx:
    def test_images_and_labels_are_those_of_the_files(self, mnist_dir):
        data = task_named("mnist-mlp", str(mnist_dir)).load()
        labels, images = labels_and_images(96, (28, 28))
        torch.testing.assert_close(data.train_inputs[:, 0].numpy() * 255, images.astype(np.float32))
        assert data.train_labels.tolist() == labels.tolist()
        assert data.train_inputs.shape == (96, 1, 28, 28)
        assert data.validation_inputs.shape == (40, 1, 28, 28)
        assert data.validation_labels.dtype == torch.int64

    def test_packed_files_are_the_same(self, mnist_dir):
        plain = mnist.load_mnist(mnist_dir)
        for name in IDX:
            path = mnist_dir / name
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        packed = mnist.load_mnist.__wrapped__(mnist_dir)
        assert torch.equal(packed.train_inputs, plain.train_inputs)
        assert torch.equal(packed.validation_labels, plain.validation_labels)

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("train-images-idx3-ubyte", None, "no such file, nor train-images-idx3-ubyte.gz"),
            ("train-images-idx3-ubyte", b"", "truncated: 0 bytes, and its header alone has 16"),
            ("train-images-idx3-ubyte", idx(np.zeros((9, 28, 28), np.uint8))[:-1], "7,071 bytes, and 7,072"),
            ("train-images-idx3-ubyte", idx(np.zeros((9, 28, 28), np.uint8)) + b"!", "7,073 bytes, and 7,072"),
            ("train-images-idx3-ubyte", idx(np.zeros((9, 32, 32), np.uint8)), "samples of 32×32, and 28×28"),
            ("train-images-idx3-ubyte", idx(np.zeros((0, 28, 28), np.uint8)), "0 samples, and 2 to 100,000"),
            (
                "train-images-idx3-ubyte",
                bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 28, 28) + bytes(99),
                "4,294,967,295 samples, and 2 to 100,000",
            ),
            (
                "train-images-idx3-ubyte",
                struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31),
                "2147483648×2147483648, and 28×28",
            ),
            ("train-images-idx3-ubyte", bytes((0, 0, 13, 3)) + bytes(12), r"00 00 0d 03, and .* 00 00 08 03"),
            ("train-images-idx3-ubyte", idx(np.zeros(99, np.uint8)), r"00 00 08 01, and .*with 00 00 08 03"),
            ("train-images-idx3-ubyte", b"\x1f\x8b" + bytes(99), "begins with 1f 8b 00 00"),
            ("train-labels-idx1-ubyte", idx(np.zeros(95, np.uint8)), "95 labels, and 96 are expected"),
            ("t10k-labels-idx1-ubyte", idx(np.full(40, 10, np.uint8)), "has the label 10, and 0 to 9"),
            ("t10k-labels-idx1-ubyte", bytes(200_000), "larger than the 100,008 bytes"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_with_a_file_is_said_in_one_line_that_names_it(self, mnist_dir, name, content, complaint):
        (mnist_dir / name).unlink()
        if content is not None:
            (mnist_dir / name).write_bytes(content)
        with pytest.raises(InputError, match=complaint) as refusal:
            task_named("mnist-mlp", str(mnist_dir)).load()
        assert str(mnist_dir / name) in str(refusal.value)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        "content",
        [b"nothing packed", gzip.compress(bytes(5000))[:-9], gzip.compress(bytes(5000), 0)[:-300] + bytes(300)],
        ids=["not gzip", "cut off", "damaged"],
    )
    def test_packed_files_that_cannot_be_unpacked(self, tmp_path, content):
        path = tmp_path / "packed.gz"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"packed\.gz: cannot be read"):
            read_at_most(path, 10_000)

    def test_a_packed_file_that_would_fill_the_memory_is_not_unpacked(self, tmp_path):
        path = tmp_path / "train-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(bytes(50_000_000), 1))
        with pytest.raises(InputError, match="larger than the 100,008 bytes"):
            mnist.read_idx(path, ())


class TestCifar:
    def test_images_and_labels_are_those_of_the_files(self, cifar_dir):
        data = task_named("cifar10-cnn", str(cifar_dir)).load()
        parts = [labels_and_images(20 + order, (3, 32, 32)) for order in range(6)]
        assert data.train_labels.tolist() == np.concatenate([labels for labels, _ in parts[:5]]).tolist()
        images = np.concatenate([images for _, images in parts[:5]]).astype(np.float32)
        torch.testing.assert_close(data.train_inputs.numpy() * 255, images)
        assert data.validation_labels.tolist() == parts[5][0].tolist()
        assert data.validation_inputs.shape == (25, 3, 32, 32)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (None, "no such file"),
            (b"", "0 bytes, and a multiple of 3,073"),
            (bytes(2 * RECORD - 1), "6,145 bytes, and a multiple of 3,073"),
            (bytes(RECORD) + bytes([10]) + bytes(RECORD - 1), "record 1 has the label 10, and 0 to 9"),
            (bytes(10_001 * RECORD), "larger than the 30,730,000 bytes"),
        ],
    )
    def test_what_is_wrong_with_a_file_is_said_in_one_line_that_names_it(self, cifar_dir, content, complaint):
        path = cifar_dir / "data_batch_3.bin"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=complaint) as refusal:
            task_named("cifar10-cnn", str(cifar_dir)).load()
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [*BUNDLED, *OF_FILES])
def test_hosts_learn_their_tasks(name, request):
    directory = request.getfixturevalue("cifar_dir" if "cifar" in name else "mnist_dir") if name in OF_FILES else ""
    task = task_named(name, str(directory))
    data = task.load()
    torch.manual_seed(0)
    host = task.make_host()
    optimizer = task.make_optimizer(host.parameters(), task.learning_rate)
    inputs, labels = data.train_inputs[: task.batch_size], data.train_labels[: task.batch_size]
    losses = []
    while len(losses) < 150 and losses[-1:] >= [0.7 * loss for loss in losses[:1]]:
        optimizer.zero_grad()
        loss = task.loss(host(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(host.head.out_features), rel=0.25)  # as good as a guess
    assert losses[-1] < 0.7 * losses[0]
    assert task.accuracy(host(inputs), labels) > 2 * 100 / host.head.out_features


def test_accuracy_is_the_share_of_labels_with_the_largest_logit():
    assert (
        percent_correct(torch.tensor([[0.0, 1.0], [2.0, 1.0], [3.0, 4.0], [0.0, 9.0]]), torch.tensor([1, 0, 0, 1]))
        == 75
    )
    tokens = torch.zeros(1, 3, 5)  # one text of five characters, out of three
    tokens[0, 2, :4] = 1.0
    assert percent_correct(tokens, torch.tensor([[2, 2, 2, 1, 0]])) == 80


def test_a_convolutional_host_takes_the_colours_it_is_told():
    host = ConvHost(size=32, classes=10, channels=16, inputs=3)
    assert host(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert [slot.shape for slot in slots_of(host).values()] == [(16, 32, 32), (32, 16, 16), (32, 16, 16)]


def seed_after(events) -> SeedTelemetry:
    """The first slot's seed as the last epoch left it."""
    return [event.payload for event in events if isinstance(event.payload, EpochCompleted)][-1].seeds[0]


def test_sapflow_train_on_text_and_on_files_that_are_damaged(mnist_dir):
    """Real processes, from another directory than the files'."""
    for name in IDX:
        (mnist_dir / name).write_bytes((mnist_dir / name).read_bytes()[:-1])
    here = mnist_dir / "here"
    here.mkdir()
    damaged = finish_forked(["train", "--task", "mnist-cnn", "--run-dir", "none", "--data", ".."], here)
    refused(damaged, "train-labels-idx1-ubyte", "are expected")
    assert not (here / "none").exists()
    text = finish_forked(
        ["train", "--envs", "1", "--task", "characters", "--epochs", "2", "--run-dir", "text"], here
    )  # fmt: skip
    assert text.returncode == 0, text.stderr
    events, _ = read_whole(here / "text")
    assert isinstance(events[0].payload, RunStarted)
    assert events[0].payload.task == "characters"
    assert seed_after(events).measurement is Measurement.MEASURED
    assert seed_after(events).grad_ratio > 0


class Kept(list):
    def emit(self, event):
        self.append(event)


@pytest.mark.parametrize("name", OF_FILES)
def test_runs_on_files_measure_what_grows(name, request):
    directory = request.getfixturevalue("cifar_dir" if "cifar" in name else "mnist_dir")
    kept = Kept()
    envs = run(RunPlan(task=name, envs=1, epochs=2, data_dir=str(directory)), "run", kept)
    assert list(envs) == [0]
    assert kept[0].payload.task == name
    assert seed_after(kept).measurement is Measurement.MEASURED


def test_a_last_batch_of_one_sample_is_passed_over(mnist_dir):
    """BatchNorm could not learn from it."""
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        values = labels_and_images(65, (28, 28))["images" in name]
        (mnist_dir / name).write_bytes(idx(values))
    kept = Kept()
    run(RunPlan(task="mnist-mlp", envs=1, epochs=2, data_dir=str(mnist_dir)), "run", kept)
    assert isinstance(kept[-1].payload, RunCompleted)
    assert kept[-1].payload.completed_envs == 1
    assert seed_after(kept).passes == 1
