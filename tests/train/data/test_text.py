"""Text data modules: splits by document, windows that score every byte once, and the bigram bar."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from zoo.train.data import DocumentationDataModule, TextFilesDataModule, bigram_bits_per_byte
from zoo.train.data.windows import EvaluationWindows, TrainingWindows, read_bytes


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = {f"part{number}": f"{number} " * (20 + 7 * number) + "é\r\n" for number in range(10)}
    return write(tmp_path, **texts)


def test_documentation_is_split_by_document_without_repeats():
    data = DocumentationDataModule()
    splits = {split: data.documents(split) for split in ("train", "val", "test")}
    documents = list(chain(*splits.values()))
    assert sorted(documents) == sorted(set(topics.values()))
    total = sum(len(text.encode()) for text in documents)
    for split in ("val", "test"):
        assert 0.08 < sum(len(text.encode()) for text in splits[split]) / total <= 0.1
    assert splits == {split: DocumentationDataModule(seed=9).documents(split) for split in splits}
    assert splits != {split: DocumentationDataModule(split_seed=9).documents(split) for split in splits}


@pytest.mark.parametrize("context", [1, 3, 7])
@pytest.mark.parametrize("sizes", [[1], [7], [8], [9], [40, 1, 15, 16, 17, 7]])
def test_evaluation_scores_every_byte_once_in_its_own_documents_context(sizes: list[int], context: int):
    seq_len = 8
    documents = [torch.arange(1, size + 1, dtype=torch.uint8) + 10 * number for number, size in enumerate(sizes)]
    windows = EvaluationWindows(documents, seq_len, separator=0, context=context)
    tokens, labels = windows.fetch(torch.arange(len(windows)), 0)
    assert tokens.shape == labels.shape == (len(windows), seq_len) and tokens.dtype == labels.dtype == torch.int64
    assert (labels[:, 0] == -100).all()  # a model that shifts its labels never sees these
    scored = labels != -100
    assert torch.equal(labels[scored], torch.cat(documents).long())  # each once, and in order
    assert windows.scored == scored.sum() == sum(sizes)
    assert torch.equal(tokens[scored], labels[scored])
    # What precedes a scored byte in its window is what precedes it in its document, after the separator.
    stream = iter([(document, place) for document in documents for place in range(len(document))])
    for row in range(len(windows)):
        for column in scored[row].nonzero().flatten().tolist():
            document, place = next(stream)
            before = torch.cat([torch.zeros(1), document[:place]]).long()
            assert torch.equal(tokens[row, :column], before[len(before) - column :])
            assert column == place + 1 or column >= context
    assert not list(stream)


@pytest.mark.parametrize("sampling", ["strided", "random"])
def test_training_windows_are_pieces_of_the_stream_drawn_anew_each_epoch(sampling: str):
    documents = [torch.arange(1, 60, dtype=torch.uint8), torch.arange(100, 130, dtype=torch.uint8)]
    stream = torch.cat([torch.zeros(1), documents[0], torch.zeros(1), documents[1]]).tolist()
    windows = TrainingWindows(documents, 8, 0, 5, sampling)
    everything = torch.arange(len(windows))
    starts = []
    for epoch in range(200):
        tokens, labels = windows.fetch(everything, epoch)
        assert torch.equal(tokens, labels) and tokens.shape == (len(windows), 8)
        assert torch.equal(tokens, windows.fetch(everything, epoch)[0])
        assert torch.equal(tokens[[3, 1]], windows.fetch(torch.tensor([3, 1]), epoch)[0])
        starts.append([next(s for s in range(len(stream) - 7) if stream[s : s + 8] == row) for row in tokens.tolist()])
    if sampling == "strided":
        assert all(later - earlier == 8 for row in starts for earlier, later in pairwise(row))
        assert {row[0] for row in starts} == set(range(12))
    assert {0, len(stream) - 8} <= {start for row in starts for start in row}


@pytest.mark.parametrize("size", [8, 14, 15, 16, 100])
def test_any_training_text_of_a_window_or_more_will_do(size: int):
    for sampling in ("strided", "random"):
        windows = TrainingWindows([torch.ones(size - 1, dtype=torch.uint8)], 8, 0, 0, sampling)
        for epoch in range(20):
            assert windows.fetch(torch.arange(len(windows)), epoch)[0].shape == (len(windows), 8)


def test_documentation_batches_and_their_bits_per_byte():
    data = DocumentationDataModule(seq_len=64, batch_size=16)
    tokens, labels = next(iter(data.train_dataloader()))
    assert tokens.shape == (16, 64) and torch.equal(tokens, labels)
    assert data.vocab_size == 256 > tokens.max()
    scored = sum(int((labels != -100).sum()) for _, labels in data.test_dataloader())
    assert scored == sum(len(text.encode()) for text in data.documents("test"))
    assert math.isclose(data.bits_per_byte(math.log(256), "test"), 8)
    with pytest.raises(ValueError, match="'val' or 'test', got 'train'"):
        data.bits_per_byte(1.0, "train")
    with pytest.raises(KeyError):
        data.documents("dev")


def test_files_are_read_as_bytes_and_split_by_file(corpus: Path):
    data = TextFilesDataModule([f"{corpus}/**/*.txt", f"{corpus}/part3.txt"], seq_len=16, val_fraction=0.2)
    documents = list(chain(*(data.documents(split) for split in ("train", "val", "test"))))
    assert sorted(documents) == sorted(path.read_bytes().decode() for path in corpus.iterdir())
    assert all(data.documents(split) for split in ("train", "val", "test"))
    assert data.encode("é\r\n").tolist() == list("é\r\n".encode())
    again = pickle.loads(pickle.dumps(data))
    assert again.documents("test") == data.documents("test")


def test_one_file_is_cut_into_blocks_at_line_ends(tmp_path: Path):
    text = "".join(f"line {number}\n" for number in range(1000))
    data = TextFilesDataModule(str(write(tmp_path, only=text) / "only.txt"), seq_len=32)
    blocks = [data.documents(split) for split in ("train", "val", "test")]
    assert "".join(chain(*blocks)) == text
    assert [round(len(block) / len(text), 1) for (block,) in blocks] == [0.8, 0.1, 0.1]
    assert all(block.endswith("\n") for (block,) in blocks)
    whole = TextFilesDataModule(str(tmp_path / "only.txt"), val_fraction=0, test_fraction=0)
    assert whole.documents("train") == [text] and whole.val_dataloader() == []
    with pytest.raises(ValueError, match="holds out no test data"):
        whole.test_dataloader()


@pytest.mark.parametrize("count", [1, 2, 3, 9, 12])
def test_any_number_of_files_and_folders(count: int, tmp_path: Path):
    """Few files are each cut in three; of many, the held-out splits get whole ones. Nothing is lost or read twice."""
    folder, inner = tmp_path / "texts", tmp_path / "texts" / "more"
    (folder / ".git").mkdir(parents=True)
    inner.mkdir()
    write(folder / ".git", hidden="no text of the user's\n" * 50)
    texts = ["".join(f"file {number} line {line}\n" for line in range(100)) for number in range(count)]
    for number, text in enumerate(texts):
        (inner if number % 2 else folder).joinpath(f"{number}.md").write_text(text)
    data = TextFilesDataModule([str(folder), str(folder / "0.md")], seq_len=16)
    splits = [data.documents(split) for split in ("train", "val", "test")]
    assert sorted("".join(chain(*splits)).splitlines()) == sorted("".join(texts).splitlines())
    for blocks, wanted in zip(splits, (0.8, 0.1, 0.1), strict=True):
        assert len("".join(blocks)) / len("".join(texts)) == pytest.approx(wanted, abs=0.04)
        assert (sorted(blocks) == sorted(set(blocks) & set(texts))) == (count == 12)


def test_one_large_file_among_many_is_cut(tmp_path: Path):
    folder = write(tmp_path, large="word and word\n" * 2000, **{f"small{number}": "word\n" for number in range(11)})
    data = TextFilesDataModule(str(folder), seq_len=16)
    assert all(data.documents(split) for split in ("train", "val", "test"))


def test_tokenizer_function_counts_tokens_per_byte(corpus: Path):
    data = TextFilesDataModule(
        f"{corpus}/*.txt",
        seq_len=8,
        tokenizer=lambda text: [len(word) for word in text.split()],
        vocab_size=9,
        separator=8,
    )
    assert (data.vocab_size, data.separator) == (9, 8)
    tokens, labels = next(iter(data.test_dataloader()))
    assert tokens[0, 0] == 8 and labels[0, 0] == -100
    words = sum(len(text.split()) for text in data.documents("test"))
    num_bytes = sum(len(text.encode()) for text in data.documents("test"))
    assert math.isclose(data.bits_per_byte(math.log(2), "test"), words / num_bytes)


def test_transformers_tokenizer_by_folder(corpus: Path, tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0, "?": 1, "3": 2, "5": 3}, unk_token="?"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="?").save_pretrained(folder)
    data = TextFilesDataModule(f"{corpus}/*.txt", seq_len=8, tokenizer=str(folder))
    assert (data.vocab_size, data.separator) == (4, 0)
    assert data.encode("3 4 5").tolist() == [2, 1, 3]
    assert pickle.loads(pickle.dumps(data)).encode("5").tolist() == [3]
    data.save_tokenizer(tmp_path / "model")
    saved = TextFilesDataModule(f"{corpus}/*.txt", tokenizer=str(tmp_path / "model"))
    assert (tmp_path / "model" / "tokenizer.json").exists() and saved.encode("3 4 5").tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1}, "seq_len must be >= 2.*got 1"),
        ({"seq_len": 8, "context": 8}, r"context must be in \[1, seq_len\).*context=8"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave some data to train on"),
        ({"test_fraction": -1.0}, "test_fraction must be in .*got -1"),
        ({"windows": "sliding"}, "windows must be 'strided' or 'random', got 'sliding'"),
        ({"tokenizer": list}, "needs vocab_size and separator"),
        ({"separator": 256}, "separator must be a byte, got 256"),
    ],
)
def test_errors_in_arguments(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DocumentationDataModule(**options)


def test_errors_in_files(tmp_path: Path):
    write(tmp_path, empty="", short="a\nb", line="x" * 50)
    with pytest.raises(FileNotFoundError, match=r"no file fits .*nothing\*'"):
        TextFilesDataModule(f"{tmp_path}/nothing*").setup()
    with pytest.raises(FileNotFoundError, match="no file fits"):
        TextFilesDataModule(str(tmp_path / ".hidden")).setup()
    with pytest.raises(ValueError, match="found no text"):
        TextFilesDataModule(f"{tmp_path}/empty.txt").setup()
    with pytest.raises(ValueError, match="at least one window of seq_len 256, got 2 tokens"):
        TextFilesDataModule(f"{tmp_path}/short.txt", val_fraction=0.3, test_fraction=0.3).setup()
    with pytest.raises(ValueError, match="its 2 lines leave none for"):
        TextFilesDataModule(f"{tmp_path}/short.txt", val_fraction=0.1, test_fraction=0.1).setup()
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"must be UTF-8, got .*latin\.txt"):
        TextFilesDataModule(f"{tmp_path}/latin.txt").setup()


def test_bigram_is_a_witten_bell_bigram():
    train, test = ["abracadabra", "banana"], ["cab", "zzb", "an"]
    pairs = Counter(pair for text in train for pair in zip("\0" + text, text, strict=False))
    firsts, seconds, followers = Counter(), Counter(), Counter()
    for (first, second), count in pairs.items():
        firsts[first] += count
        seconds[second] += count
        followers[first] += 1

    def probability(first: str, second: str) -> float:
        unigram = (seconds[second] + 1) / (sum(seconds.values()) + 256)
        if not firsts[first]:
            return unigram
        return (pairs[first, second] + followers[first] * unigram) / (firsts[first] + followers[first])

    for first in "\0abz":
        assert math.isclose(sum(probability(first, chr(byte)) for byte in range(256)), 1)
    scored = [probability(first, second) for text in test for first, second in zip("\0" + text, text, strict=False)]
    expected = -sum(math.log2(p) for p in scored) / len(scored)
    assert math.isclose(bigram_bits_per_byte(train, test), expected, rel_tol=1e-12)
    assert bigram_bits_per_byte([text.encode() for text in train], test) == bigram_bits_per_byte(train, test)


def test_bigram_bar_on_the_documentation_is_harder_than_add_one():
    data = DocumentationDataModule()
    train, test = data.documents("train"), data.documents("test")
    pairs, firsts = Counter(), Counter()
    for text in train:
        data_bytes = b"\0" + text.encode()
        pairs.update(pairwise(data_bytes))
        firsts.update(data_bytes[:-1])
    bits = scored = 0
    for text in test:
        data_bytes = b"\0" + text.encode()
        for pair in pairwise(data_bytes):
            bits -= math.log2((pairs[pair] + 1) / (firsts[pair[0]] + 256))
            scored += 1
    assert 2.5 < bigram_bits_per_byte(train, test) < bits / scored < 5


def test_bigram_wants_text():
    with pytest.raises(ValueError, match="got 0 and 1 bytes"):
        bigram_bits_per_byte([""], ["a"])
    with pytest.raises(ValueError, match="got 1 and 0 bytes"):
        bigram_bits_per_byte(["a"], [])


def test_read_bytes_takes_nothing_and_everything():
    assert read_bytes(bytes(range(256))).tolist() == list(range(256))
    assert read_bytes(b"").shape == (0,)
