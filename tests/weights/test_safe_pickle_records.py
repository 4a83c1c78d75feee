import io
import pickle

import pytest
import torch

from beit.weights.safe_pickle import records
from beit.weights.safe_pickle.records import Record, Storage, View

FLOATS = Storage(torch.float32, "0", 6)


class Referring(pickle.Pickler):
    """Pickles tuples that begin with `storage` or `module` as persistent ids, as torch does."""

    def persistent_id(self, thing):
        return (
            thing if isinstance(thing, tuple) and thing[:1] in (("storage",), ("module",)) else None
        )


class Holder:
    """An object with fields."""

    def __init__(self, **fields):
        vars(self).update(fields)


def pickled(thing, protocol=2):
    stream = io.BytesIO()
    Referring(stream, protocol).dump(thing)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_become_records_and_plain_values_are_kept(protocol):
    inner = Holder(name="inner", few={3, 5})
    data = pickled(Holder(number=1.5, inner=inner, again=inner, many=[1, None, "x"]), protocol)
    value, end, storages = records.unpickle(
        b"..." + data + b"rest", 3, classes=(Holder.__module__,)
    )
    assert (end, storages) == (3 + len(data), {})
    assert isinstance(value, Record)
    assert vars(value.inner) == {"name": "inner", "few": {3, 5}}
    assert value.inner is value.again
    assert (value.number, value.many) == (1.5, [1, None, "x"])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
    ],
)
def test_other_names_are_refused(data):
    with pytest.raises(pickle.UnpicklingError, match="it names "):
        records.unpickle(data, classes=("dall_e.",))


def test_a_pickle_cannot_change_a_replacement_for_good():
    """This one sets the default arguments of the replacement of torch's function."""
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    data = b"\x80\x02" + name + b"N}X\x0c\x00\x00\x00__defaults__K\x01K\x02\x86s\x86b."
    value = records.unpickle(data).value
    assert value.__defaults__ == (1, 2)
    assert records.FUNCTIONS["torch._utils", "_rebuild_tensor_v2"].__defaults__ is None
    assert records.unpickle(data[: len(name) + 2] + b".").value.__defaults__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 places, of 17 GB
        b"\x80\x02}p2147483647\n.",
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\x00\x00.",  # bytes that are not there
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\x00\x00}.",  # a frame of them
        b"\x80\x02}",
        b"",
    ],
)
def test_forged_sizes_are_refused(data):
    with pytest.raises(records.UNSOUND):
        records.unpickle(data)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (("storage", "FloatStorage", "0", "cuda:0", 6), FLOATS),
        (("storage", "FloatStorage", "0", "cpu", 6, None), FLOATS),
        (("module", "anything", "file.py", "source"), "anything"),
        (("storage", "FloatStorage", "0", "cpu", 6, ("0", 1, 2)), None),
        (("storage", "FloatStorage", "0", "cpu", -6), None),
        (("storage", "FancyStorage", "0", "cpu", 6), None),
        (("storage", 5, "0", "cpu", 6), None),
    ],
)
def test_references(reference, expected):
    if expected is None:
        with pytest.raises(records.UNSOUND):
            records.unpickle(pickled([reference]))
    else:
        value, _, storages = records.unpickle(pickled([reference]))
        assert value == [expected]
        assert storages == ({"0": FLOATS} if expected is FLOATS else {})


def test_a_storage_has_one_size():
    one, other = (("storage", "FloatStorage", "0", "cpu", length) for length in (6, 7))
    with pytest.raises(pickle.UnpicklingError, match="length=7"):
        records.unpickle(pickled([one, other]))


def test_tensors_are_listed_by_dotted_name():
    def node(**fields):
        thing = Record()
        thing.__setstate__(fields)
        return thing

    view = View(FLOATS, 0, (2, 3), (3, 1))
    root = node(a=view, inner=node(b=view, text="x"), other=[view])
    assert records.views(root, vars) == {"a": view, "inner.b": view}
    root.inner.__setstate__({"root": root})
    with pytest.raises(pickle.UnpicklingError, match="endlessly"):
        records.views(root, vars)
    root = node(a=view)
    for _ in range(30):  # 2^30 names for one tensor
        root = node(left=root, right=root)
    with pytest.raises(pickle.UnpicklingError, match="endlessly"):
        records.views(root, vars)


def test_each_storage_is_read_once():
    content, reads = torch.arange(6.0).numpy().tobytes(), []

    def read(storage):
        reads.append(storage)
        return content

    tensors = records.tensors_of(
        {
            "rows": View(FLOATS, 0, (2, 3), (3, 1)),
            "turned": View(FLOATS, 0, (3, 2), (1, 3)),
            "end": View(FLOATS, 4, (2,), (1,)),
        },
        read,
    )
    assert reads == [FLOATS]
    assert tensors["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(tensors["turned"], tensors["rows"].T)
    assert tensors["end"].tolist() == [4, 5]
    none = Storage(torch.int64, "1", 0)
    assert records.tensors_of({"x": View(none, 0, (0, 3), (3, 1))}, lambda _: b"")["x"].numel() == 0


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (7,), (1,)),
        (0, (7,), (0,)),
        (1, (6,), (1,)),
        (-1, (2,), (1,)),
        (0, (10**6, 10**6), (0, 0)),
        (0, (-2, -3), (3, 1)),
        (0, (2, 3), (1,)),
        (0, "23", (3, 1)),
        (0, 3, 1),
    ],
)
def test_views_beyond_their_storage_are_refused(offset, size, stride):
    with pytest.raises(records.UNSOUND):
        records.tensors_of({"x": View(FLOATS, offset, size, stride)}, lambda _: bytes(24))
